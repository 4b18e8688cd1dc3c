"""Messages of customers, which open turns, and of people of the workspace, which do not."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import Header, Response

from api.dependencies import AppState, AppStateDep, CallerDep, router
from api.errors import Problem
from api.openapi import CONFLICT, TOO_MANY_OPEN
from api.responses import Json
from api.schemas import messages as schemas
from engine.enums import EventKind, Source, TurnStatus
from store.conversations import events, session_control
from store.conversations.intake import KEY_MAX_LENGTH, Accepted
from tasks.intake import accept_and_dispatch

routes = router("sessions")
_HEADERS: dict[str, Any] = {
    "headers": {
        "Location": {"description": "The turn that answers.", "schema": {"type": "string"}},
        "Idempotent-Replayed": {
            "description": "`true` if the key had been used: this is the first response again.",
            "schema": {"type": "string"},
        },
    }
}


@routes.post(
    "/sessions/{session_id}/messages",
    status_code=202,
    response_model=schemas.Accepted,
    responses={202: _HEADERS, **CONFLICT, **TOO_MANY_OPEN},
)
async def post_message(
    session_id: UUID,
    body: schemas.MessageCreate,
    caller: CallerDep,
    app_state: AppStateDep,
    idempotency_key: Annotated[
        str | None, Header(min_length=1, max_length=KEY_MAX_LENGTH, description="An alternative to `message_key`.")
    ] = None,
) -> Response:
    """Accept a message of a customer, or of a person (`source`). The reply to a customer appears in the session's log.

    With a `message_key` this is safe to repeat: the same key and text get the first response, the same key with another text is a
    conflict. If too many turns are open, the response is 429 with `Retry-After`: the message was not accepted, so send it again with the
    same key.
    """
    message_key = _message_key(body, idempotency_key)
    if body.source == Source.CUSTOMER:
        accepted = await _accept_from_customer(app_state, caller.workspace_id, session_id, body, message_key)
    else:
        accepted = await _accept_from_person(app_state, caller.workspace_id, session_id, body, message_key)
    return await _response(app_state, caller.workspace_id, session_id, body, accepted)


def _message_key(body: schemas.MessageCreate, idempotency_key: str | None) -> str | None:
    if idempotency_key is not None and body.message_key is not None and idempotency_key != body.message_key:
        message = "Differs from the Idempotency-Key header; send one of them."
        raise Problem(422, "Two different keys were sent.", errors=[("body.message_key", message)])
    return body.message_key if body.message_key is not None else idempotency_key


async def _accept_from_customer(
    app_state: AppState, workspace_id: UUID, session_id: UUID, body: schemas.MessageCreate, message_key: str | None
) -> Accepted:
    await app_state.load_monitor.check(workspace_id, session_id, message_key=message_key, strategy=body.strategy)
    accepted = await accept_and_dispatch(
        app_state.database,
        app_state.publisher,
        app_state.dispatcher,
        workspace_id,
        session_id,
        body.text,
        message_key=message_key,
        metadata=body.metadata,
        strategy=body.strategy,
        in_flight_limit=app_state.settings.workspace_in_flight,
        max_open=app_state.settings.session_max_open or None,
    )
    if not accepted.repeated and accepted.turn_status == TurnStatus.QUEUED:
        app_state.load_monitor.count_accepted(workspace_id)
    return accepted


async def _accept_from_person(
    app_state: AppState, workspace_id: UUID, session_id: UUID, body: schemas.MessageCreate, message_key: str | None
) -> Accepted:
    accepted = await session_control.reply_as_person(
        app_state.database, workspace_id, session_id, body.source, body.text, message_key=message_key, metadata=body.metadata
    )
    app_state.after_commit(session_id, offset=accepted.offset, to_dispatch=None)
    return accepted


async def _response(app_state: AppState, workspace_id: UUID, session_id: UUID, body: schemas.MessageCreate, accepted: Accepted) -> Response:
    event = await _first_event(app_state, workspace_id, session_id, accepted) if accepted.repeated else _event(session_id, body, accepted)
    headers = {"Idempotent-Replayed": "true"} if accepted.repeated else {}
    turn = None
    if accepted.turn_id is not None:
        turn = {"id": accepted.turn_id, "status": accepted.turn_status}
        headers["Location"] = f"/v1/turns/{accepted.turn_id}"
    return Json({"event": event, "turn": turn}, 202, headers)


def _event(session_id: UUID, body: schemas.MessageCreate, accepted: Accepted) -> dict[str, Any]:
    return {
        "id": accepted.event_id,
        "session_id": session_id,
        "offset": accepted.offset,
        "kind": EventKind.CUSTOMER_MESSAGE if body.source == Source.CUSTOMER else EventKind.AGENT_MESSAGE,
        "source": body.source,
        "content": {"text": body.text},
        "metadata": body.metadata,
        "turn_id": accepted.turn_id,
        "created_at": accepted.created_at,
    }


async def _first_event(app_state: AppState, workspace_id: UUID, session_id: UUID, accepted: Accepted) -> dict[str, Any]:
    """Return the event of the first message with this key; its metadata may differ from the repeat's."""
    async with app_state.database.transaction(workspace_id) as db:
        found = await events.after(db, session_id, accepted.offset - 1, limit=1)
    return found[0]
