"""How satisfied customers were, as web apps have asked them."""

from __future__ import annotations

from uuid import UUID

from fastapi import Response

from api.dependencies import AppStateDep, CallerDep, router
from api.responses import Json
from api.schemas import requests, responses
from store.conversations import sessions

routes = router("sessions")


@routes.put("/sessions/{session_id}/satisfaction", response_model=responses.Session)
async def rate_session(session_id: UUID, body: requests.Satisfaction, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Note how satisfied the customer was, whether or not the session has ended. The last word counts; harmless to repeat."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        return Json(await sessions.rate(db, session_id, body.score))


@routes.delete("/sessions/{session_id}/satisfaction", response_model=responses.Session)
async def unrate_session(session_id: UUID, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Take back what was said of it. Harmless to repeat."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        return Json(await sessions.rate(db, session_id, None))
