"""Turns: look at them, cancel and redrive them."""

from __future__ import annotations

from uuid import UUID

from fastapi import Response

from api.dependencies import AppStateDep, CallerDep, router
from api.openapi import CONFLICT
from api.pagination import Paging, paged
from api.responses import Json
from api.schemas import turns as schemas
from engine.enums import TurnStatus
from store.conversations import redrive, session_control, turn_view

routes = router("turns")


@routes.get("/turns/{turn_id}", response_model=schemas.Turn)
async def get_turn(turn_id: UUID, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Show a turn's status, the duration of each stage, its usage and its cost. Its text is in the session's log."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        return Json(await turn_view.turn(db, turn_id))


@routes.get("/sessions/{session_id}/turns", response_model=schemas.Turns)
async def list_turns(session_id: UUID, caller: CallerDep, app_state: AppStateDep, page: Paging) -> Response:
    """List a session's turns, newest first, without their calls."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        return paged(await turn_view.page(db, session_id, limit=page.limit, after=page.after, total=page.include_total))


@routes.post("/turns/{turn_id}/cancel", status_code=202, response_model=schemas.Cancelled)
async def cancel_turn(turn_id: UUID, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Cancel a turn; the session's next one runs then. The partial reply is kept in the log, marked as cut off. Idempotent."""
    cancelled = await session_control.cancel_turn(app_state.database, caller.workspace_id, turn_id, by=await app_state.signature(caller))
    offset = None if cancelled.status == "settled" else cancelled.offset
    app_state.after_commit(cancelled.session_id, offset=offset, to_dispatch=cancelled.to_dispatch)
    return Json({"status": cancelled.status, "session_id": cancelled.session_id, "turn_id": turn_id}, 202)


@routes.post("/turns/{turn_id}/redrive", status_code=202, response_model=schemas.Redriven, responses=CONFLICT)
async def redrive_turn(turn_id: UUID, caller: CallerDep, app_state: AppStateDep, body: schemas.Redrive | None = None) -> Response:
    """Reopen a failed or dead turn, with all its attempts and limits restored. Lifts a quarantine of its session.

    The turn resumes from its last step: completed model calls and tool calls are not repeated.
    """
    redriven = await redrive.redrive(
        app_state.database,
        caller.workspace_id,
        turn_id,
        from_scratch=body.from_scratch if body else False,
        by=await app_state.signature(caller),
        in_flight_limit=app_state.settings.workspace_in_flight,
    )
    app_state.after_commit(redriven.session_id, offset=redriven.offset, to_dispatch=redriven.to_dispatch)
    return Json({"turn": {"id": turn_id, "status": TurnStatus.QUEUED}}, 202)
