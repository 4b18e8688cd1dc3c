"""Repair: a turn that failed or died gets another go; a quarantined session goes on."""

from __future__ import annotations

from uuid import UUID

from fastapi import Response

from api.dependencies import AppState, AppStateDep, CallerDep, router
from api.openapi import CONFLICT
from api.responses import Json
from api.schemas import requests, responses
from store.catalog import workspaces
from store.catalog.workspaces import Caller
from store.conversations import redrive as store_redrive
from store.conversations import sessions

routes = router("repair")


@routes.post("/turns/{turn_id}/redrive", status_code=202, response_model=responses.Redriven, responses=CONFLICT)
async def redrive_turn(turn_id: UUID, caller: CallerDep, app_state: AppStateDep, body: requests.Redrive | None = None) -> Response:
    """Open a failed or dead turn again, with all its attempts and limits. A quarantine of its session is lifted.

    It goes on from its last step: finished model calls and tool calls are not made again.
    """
    done = await store_redrive.redrive(
        app_state.database,
        caller.workspace_id,
        turn_id,
        from_scratch=body.from_scratch if body else False,
        by=await _by(app_state, caller),
        window=app_state.settings.workspace_in_flight,
    )
    _tell(app_state, done.session_id, done.offset, done.to_dispatch)
    return Json({"turn": {"id": turn_id, "status": "queued"}}, 202)


@routes.post("/sessions/{session_id}/release", response_model=responses.Session)
async def release_session(session_id: UUID, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Lift a session's quarantine: its open turns are carried again; dead ones stay dead until redriven. Harmless to repeat."""
    done = await store_redrive.release(
        app_state.database, caller.workspace_id, session_id, by=await _by(app_state, caller), window=app_state.settings.workspace_in_flight
    )
    _tell(app_state, session_id, done.offset, done.to_dispatch)
    async with app_state.database.transaction(caller.workspace_id) as db:
        return Json(await sessions.get(db, session_id))


async def _by(app_state: AppState, caller: Caller) -> str:
    async with app_state.database.transaction(caller.workspace_id) as db:
        return await workspaces.signature(db, caller)


def _tell(app_state: AppState, session_id: UUID, offset: int | None, to_dispatch: UUID | None) -> None:
    if offset is not None:
        app_state.publisher.log_advanced(session_id, offset)
    if to_dispatch is not None:
        app_state.dispatcher.dispatch(to_dispatch)
