"""Turns, as an operator or a waiting program looks at them."""

from __future__ import annotations

from uuid import UUID

from fastapi import Response

from api.dependencies import AppStateDep, CallerDep, router
from api.pagination import Paging, paged
from api.responses import Json
from api.schemas import turns
from store.conversations import turn_view

routes = router("turns")


@routes.get("/turns/{turn_id}", response_model=turns.Turn)
async def get_turn(turn_id: UUID, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Show where a turn stands, how long each stage took, what it used and cost. What was said is in the session's log."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        return Json(await turn_view.turn(db, turn_id))


@routes.get("/sessions/{session_id}/turns", response_model=turns.Turns)
async def list_turns(session_id: UUID, caller: CallerDep, app_state: AppStateDep, page: Paging) -> Response:
    """List a session's turns, the newest first, without their calls."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        return paged(await turn_view.page(db, session_id, limit=page.limit, after=page.after, total=page.include_total))
