"""Intake: a customer's message becomes an event and a turn, a person's an event."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import Header, Response

from api.dependencies import AppState, AppStateDep, CallerDep, router
from api.errors import Problem
from api.openapi import CONFLICT, TOO_MUCH
from api.responses import Json
from api.schemas import requests, responses
from engine.enums import EventKind
from failpoints import failpoint
from store.conversations import events, intake, session_control
from store.conversations.intake import KEY_MAX_LENGTH, Accepted

routes = router("sessions")
_HEADERS: dict[str, Any] = {
    "headers": {
        "Location": {"description": "The turn that answers.", "schema": {"type": "string"}},
        "Idempotent-Replayed": {"description": "`true` where the key had been used: the first answer.", "schema": {"type": "string"}},
    }
}


@routes.post(
    "/sessions/{session_id}/messages", status_code=202, response_model=responses.Accepted, responses={202: _HEADERS, **CONFLICT, **TOO_MUCH}
)
async def post_message(
    session_id: UUID,
    body: requests.MessageCreate,
    caller: CallerDep,
    app_state: AppStateDep,
    idempotency_key: Annotated[
        str | None, Header(min_length=1, max_length=KEY_MAX_LENGTH, description="Another place for `message_key`.")
    ] = None,
) -> Response:
    """Accept a customer's message, or a person's (`source`). The reply to a customer appears in the session's log.

    With a `message_key` this is safe to repeat: the same key and text get the first answer, the same key with another text is a conflict.
    Where too much is open already, the answer is 429, with `Retry-After`: nothing was accepted, send it again with the same key.
    """
    if idempotency_key is not None and body.message_key is not None and idempotency_key != body.message_key:
        what = "It differs from the Idempotency-Key header; send one of them."
        raise Problem(422, "Two different keys were sent.", errors=[("body.message_key", what)])
    message_key = body.message_key if body.message_key is not None else idempotency_key
    if body.source != "customer":
        said = await session_control.reply_as_person(
            app_state.database, caller.workspace_id, session_id, body.source, body.text, message_key=message_key, metadata=body.metadata
        )
        if not said.repeated:
            app_state.publisher.log_advanced(session_id, said.offset)
        return await _answer(app_state, caller.workspace_id, session_id, body, said)
    await app_state.load_monitor.check(caller.workspace_id, session_id, message_key=message_key, strategy=body.strategy)
    failpoint("intake.before_commit")
    accepted = await intake.accept(
        app_state.database,
        caller.workspace_id,
        session_id,
        body.text,
        message_key=message_key,
        metadata=body.metadata,
        strategy=body.strategy,
        window=app_state.settings.workspace_in_flight,
        max_open=app_state.settings.session_max_open or None,
    )
    failpoint("intake.committed")
    if not accepted.repeated:
        app_state.publisher.log_advanced(session_id, accepted.offset)
        if accepted.turn_status == "queued":
            app_state.load_monitor.count_accepted(caller.workspace_id)
    if accepted.to_dispatch is not None:
        app_state.dispatcher.dispatch(accepted.to_dispatch)
    failpoint("intake.dispatched")
    return await _answer(app_state, caller.workspace_id, session_id, body, accepted)


async def _answer(app_state: AppState, workspace_id: UUID, session_id: UUID, body: requests.MessageCreate, accepted: Accepted) -> Response:
    event = await _first_event(app_state, workspace_id, session_id, accepted) if accepted.repeated else _event(session_id, body, accepted)
    headers = {"Idempotent-Replayed": "true"} if accepted.repeated else {}
    turn = None
    if accepted.turn_id is not None:
        turn = {"id": accepted.turn_id, "status": accepted.turn_status}
        headers["Location"] = f"/v1/turns/{accepted.turn_id}"
    return Json({"event": event, "turn": turn}, 202, headers)


def _event(session_id: UUID, body: requests.MessageCreate, accepted: Accepted) -> dict[str, Any]:
    return {
        "id": accepted.event_id,
        "session_id": session_id,
        "offset": accepted.offset,
        "kind": EventKind.CUSTOMER_MESSAGE if body.source == "customer" else EventKind.AGENT_MESSAGE,
        "source": body.source,
        "content": {"text": body.text},
        "metadata": body.metadata,
        "turn_id": accepted.turn_id,
        "created_at": accepted.created_at,
    }


async def _first_event(app_state: AppState, workspace_id: UUID, session_id: UUID, accepted: Accepted) -> dict[str, Any]:
    """The event that the key's first message became: its metadata may be other than what is sent now."""
    async with app_state.database.transaction(workspace_id) as db:
        found = await events.after(db, session_id, accepted.offset - 1, limit=1)
    return found[0]
