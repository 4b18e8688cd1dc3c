"""The session's log, page by page, or waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any
from uuid import UUID

from fastapi import Query, Request, Response

from api.dependencies import AppState, AppStateDep, CallerDep, router
from api.errors import Problem
from api.responses import Json
from api.routes.reading import LOOK_EVERY_S, read
from api.schemas import responses
from engine.enums import EventKind
from realtime.messages import Delta

routes = router("sessions")
MAX_OFFSET = 2**31 - 1
After = Annotated[int, Query(ge=-1, le=MAX_OFFSET, description="The offset behind which to begin; -1 is the beginning.")]


@routes.get("/sessions/{session_id}/events", response_model=responses.Events)
async def list_events(
    request: Request,
    session_id: UUID,
    caller: CallerDep,
    app_state: AppStateDep,
    after: After = -1,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    kind: Annotated[
        list[str] | None, Query(max_length=20, description=f"Only these kinds, repeated or with commas: {', '.join(EventKind)}.")
    ] = None,
    wait: Annotated[float, Query(ge=0, le=60, allow_inf_nan=False, description="Seconds to wait for an event, if there is none.")] = 0,
) -> Response:
    """List a session's events by offset. With `wait` an empty answer is held back until there is something to say."""
    kinds = _kinds(kind or [])
    found = await read(app_state, caller.workspace_id, session_id, after, kinds=kinds, limit=limit)
    if not found and wait:
        found = await _waited(request, app_state, caller.workspace_id, session_id, after, kinds, limit, wait)
    return Json({"events": found, "next_after": found[-1]["offset"] if found else after})


def _kinds(given: Sequence[str]) -> list[str]:
    kinds = [kind.strip() for part in given for kind in part.split(",") if kind.strip()]
    if unknown := [kind for kind in kinds if kind not in set(EventKind)]:
        what = f"There is no kind {unknown[0][:60]!r}; there are {', '.join(EventKind)}."
        raise Problem(422, what, errors=[("query.kind", what)])
    return list(dict.fromkeys(kinds))


async def _waited(
    request: Request, app_state: AppState, workspace_id: UUID, session_id: UUID, after: int, kinds: Sequence[str], limit: int, wait_s: float
) -> list[dict[str, Any]]:
    """Events above `after` as soon as there are any; nothing once the time is up, the client has left or the server stops."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + wait_s
    async with app_state.subscriber.subscribe(session_id) as watch:
        while True:
            # Looked at after the watch began, so that nothing falls between the two.
            found = await read(app_state, workspace_id, session_id, after, kinds=kinds, limit=limit)
            look_at = min(clock() + LOOK_EVERY_S, deadline)
            if found or app_state.stopping or clock() >= deadline or await request.is_disconnected():
                return found
            while (left := look_at - clock()) > 0 and isinstance(await watch.next(left), Delta):
                pass  # tokens are not in the log
