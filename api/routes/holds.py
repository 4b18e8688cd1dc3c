"""Holds: a session that is held is not deleted, whatever its retention."""

from __future__ import annotations

from uuid import UUID

from fastapi import Response

from api.dependencies import AppStateDep, CallerDep, router
from api.responses import Json
from api.schemas import requests, responses
from store.catalog import workspaces
from store.conversations import sessions

routes = router("sessions")


@routes.put("/sessions/{session_id}/hold", response_model=responses.Session)
async def hold_session(session_id: UUID, caller: CallerDep, app_state: AppStateDep, body: requests.Hold | None = None) -> Response:
    """Keep a session from being deleted, by its retention or with its customer, until it is let go. Harmless to repeat."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        by = await workspaces.signature(db, caller)
        return Json(await sessions.hold(db, session_id, body.reason if body else None, by=by))


@routes.delete("/sessions/{session_id}/hold", response_model=responses.Session)
async def unhold_session(session_id: UUID, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Let a session go that was held: it is deleted when its retention is over. Harmless to repeat."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        return Json(await sessions.unhold(db, session_id))
