"""Cancelling: a turn that is under way, or that waits, ends without a reply."""

from __future__ import annotations

from uuid import UUID

from fastapi import Response

from api.dependencies import AppState, AppStateDep, CallerDep, router
from api.responses import Json
from api.schemas import responses
from store.catalog import workspaces
from store.catalog.workspaces import Caller
from store.conversations import session_control
from store.conversations.session_control import Cancelled

routes = router("turns")


@routes.post("/sessions/{session_id}/cancel", status_code=202, response_model=responses.Cancelled)
async def cancel_session(session_id: UUID, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Cancel every open turn of a session. What was said of a reply so far is kept in the log, marked as cut off. Harmless to repeat."""
    cancelled = await session_control.cancel_session(app_state.database, caller.workspace_id, session_id, by=await _by(app_state, caller))
    return _answer(app_state, cancelled, None)


@routes.post("/turns/{turn_id}/cancel", status_code=202, response_model=responses.Cancelled)
async def cancel_turn(turn_id: UUID, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Cancel a turn; the session's next one is carried then. What was said of its reply so far is kept in the log, marked as cut off.

    Harmless to repeat.
    """
    cancelled = await session_control.cancel_turn(app_state.database, caller.workspace_id, turn_id, by=await _by(app_state, caller))
    return _answer(app_state, cancelled, turn_id)


async def _by(app_state: AppState, caller: Caller) -> str:
    async with app_state.database.transaction(caller.workspace_id) as db:
        return await workspaces.signature(db, caller)


def _answer(app_state: AppState, cancelled: Cancelled, turn_id: UUID | None) -> Response:
    if cancelled.status != "settled":
        app_state.publisher.log_advanced(cancelled.session_id, cancelled.offset)
    if cancelled.to_dispatch is not None:
        app_state.dispatcher.dispatch(cancelled.to_dispatch)
    return Json({"status": cancelled.status, "session_id": cancelled.session_id, "turn_id": turn_id}, 202)
