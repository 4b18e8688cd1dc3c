"""The stream of a session: its events as they are appended, and the reply's text as it is generated."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import Header, Request, Response

from api.auth import bearer
from api.dependencies import AppStateDep, CallerDep, router
from api.errors import Problem
from api.pagination import MAX_OFFSET, AfterOffset
from api.sse import EventStream, render

routes = router("sessions")
_DESCRIBED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "`event` events: an event of the log, with its offset as id. `delta` events: a piece of the reply being generated, "
        "`{turn_id, attempt, text}`, without an id; pieces of a greater attempt replace those of smaller ones. "
        "Comments keep the connection open.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


@routes.get("/sessions/{session_id}/stream", status_code=200, response_class=EventStream, responses=_DESCRIBED)
async def stream_events(
    request: Request,
    session_id: UUID,
    caller: CallerDep,
    app_state: AppStateDep,
    after: AfterOffset = -1,
    last_event_id: Annotated[str | None, Header(max_length=20, description="Sent by browsers; takes precedence over `after`.")] = None,
) -> Response:
    """Stream a session's log from after an offset, and continue as it grows."""
    offset = after if last_event_id is None else _offset(last_event_id)
    await app_state.reader.read(caller.workspace_id, session_id, offset, limit=1)  # a 404 is possible only before the stream starts
    key_text = bearer(request)
    followed = app_state.reader.follow(caller.workspace_id, session_id, offset)
    return EventStream(render(followed, lambda: app_state.keys.may_read(key_text)))


def _offset(last_event_id: str) -> int:
    digits = last_event_id.strip()
    if digits == "-1" or (digits.isascii() and digits.isdigit() and int(digits) <= MAX_OFFSET):
        return int(digits)
    message = "Not an id of this stream: send an offset, or -1."
    raise Problem(422, message, errors=[("header.last-event-id", message)])
