"""The events of a session's log, page by page or as a long poll."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Annotated, Any
from uuid import UUID

from fastapi import Query, Request, Response

from api.dependencies import AppStateDep, CallerDep, router
from api.errors import Problem
from api.pagination import AfterOffset
from api.responses import Json
from api.schemas import events as schemas
from engine.enums import EventKind
from realtime.event_reader import EventsRead, Idle
from realtime.messages import Delta

routes = router("sessions")


@routes.get("/sessions/{session_id}/events", response_model=schemas.Events)
async def list_events(
    request: Request,
    session_id: UUID,
    caller: CallerDep,
    app_state: AppStateDep,
    after: AfterOffset = -1,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    kind: Annotated[
        list[str] | None, Query(max_length=20, description=f"Only these kinds, repeated or with commas: {', '.join(EventKind)}.")
    ] = None,
    wait: Annotated[float, Query(ge=0, le=60, allow_inf_nan=False, description="Seconds to wait for an event if there is none yet.")] = 0,
) -> Response:
    """List a session's events by offset. With `wait`, an empty response is held back until an event is appended."""
    kinds = _kinds(kind or [])
    found = await app_state.reader.read(caller.workspace_id, session_id, after, kinds=kinds, limit=limit)
    if not found and wait:
        found = await _first(
            request, app_state.reader.follow(caller.workspace_id, session_id, after, kinds=kinds, page_size=limit, for_s=wait)
        )
    return Json({"events": found, "next_after": found[-1]["offset"] if found else after})


def _kinds(given: Sequence[str]) -> list[str]:
    kinds = [kind.strip() for part in given for kind in part.split(",") if kind.strip()]
    if unknown := [kind for kind in kinds if kind not in set(EventKind)]:
        message = f"Unknown kind {unknown[0][:60]!r}; the kinds are {', '.join(EventKind)}."
        raise Problem(422, message, errors=[("query.kind", message)])
    return list(dict.fromkeys(kinds))


async def _first(request: Request, followed: AsyncGenerator[EventsRead | Delta | Idle]) -> list[dict[str, Any]]:
    """Return the first events that `followed` yields; none if it ends or the client disconnects."""
    async with aclosing(followed):
        async for item in followed:
            if isinstance(item, EventsRead):
                return item.events
            if isinstance(item, Idle):
                if item.error is not None:
                    raise item.error
                if await request.is_disconnected():
                    break
    return []
