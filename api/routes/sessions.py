"""Sessions: open, end, switch who answers, cancel, release, hold and rate them."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import Query, Response

from api.dependencies import AppStateDep, CallerDep, router
from api.openapi import CONFLICT
from api.pagination import Paging, paged
from api.responses import Json
from api.schemas import sessions as schemas
from api.schemas import turns as turn_schemas
from api.schemas.common import Storable
from engine.enums import SessionStatus
from store.catalog import workspaces
from store.conversations import redrive, session_control, sessions

routes = router("sessions")


@routes.post("/sessions", status_code=201, response_model=schemas.Session, responses=CONFLICT)
async def create_session(body: schemas.SessionCreate, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Open a session with an agent."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        session = await sessions.create(db, caller.workspace_id, body.model_dump())
    return Json(session, 201, {"Location": f"/v1/sessions/{session['id']}"})


@routes.get("/sessions", response_model=schemas.Sessions)
async def list_sessions(
    caller: CallerDep,
    app_state: AppStateDep,
    paging: Paging,
    agent_id: UUID | None = None,
    customer_id: Annotated[str | None, Query(max_length=100), Storable] = None,
    status: SessionStatus | None = None,
    quarantined: bool | None = None,
) -> Response:
    """List sessions, newest first."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        page = await sessions.page(
            db,
            agent_id=agent_id,
            customer_id=customer_id,
            status=status,
            quarantined=quarantined,
            limit=paging.limit,
            after=paging.after,
            total=paging.include_total,
        )
    return paged(page)


@routes.get("/sessions/{session_id}", response_model=schemas.Session)
async def get_session(session_id: UUID, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Show a session with its counters and its cost."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        return Json(await sessions.get(db, session_id))


@routes.post("/sessions/{session_id}/end", response_model=schemas.Session)
async def end_session(session_id: UUID, caller: CallerDep, app_state: AppStateDep, body: schemas.SessionEnd | None = None) -> Response:
    """Complete a session: it accepts no more messages. An open turn still runs to its outcome. Idempotent."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        return Json(await sessions.end(db, session_id, body.reason if body else None))


@routes.put("/sessions/{session_id}/mode", response_model=schemas.Session, responses=CONFLICT)
async def set_mode(session_id: UUID, body: schemas.ModeChange, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Switch who answers. After a successful switch to `manual`, the agent writes no message until the mode is `auto` again.

    Idempotent.
    """
    switched = await session_control.set_mode(
        app_state.database,
        caller.workspace_id,
        session_id,
        body.mode,
        by=await app_state.signature(caller),
        in_flight_limit=app_state.settings.workspace_in_flight,
    )
    app_state.after_commit(session_id, offset=switched.offset, to_dispatch=switched.to_dispatch)
    async with app_state.database.transaction(caller.workspace_id) as db:
        return Json(await sessions.get(db, session_id))


@routes.post("/sessions/{session_id}/cancel", status_code=202, response_model=turn_schemas.Cancelled)
async def cancel_session(session_id: UUID, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Cancel every open turn of a session. The partial reply is kept in the log, marked as cut off. Idempotent."""
    cancelled = await session_control.cancel_session(
        app_state.database, caller.workspace_id, session_id, by=await app_state.signature(caller)
    )
    offset = None if cancelled.status == "settled" else cancelled.offset
    app_state.after_commit(session_id, offset=offset, to_dispatch=cancelled.to_dispatch)
    return Json({"status": cancelled.status, "session_id": session_id, "turn_id": None}, 202)


@routes.post("/sessions/{session_id}/release", response_model=schemas.Session)
async def release_session(session_id: UUID, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Lift a session's quarantine: its open turns run again; dead ones stay dead until they are redriven. Idempotent."""
    released = await redrive.release(
        app_state.database,
        caller.workspace_id,
        session_id,
        by=await app_state.signature(caller),
        in_flight_limit=app_state.settings.workspace_in_flight,
    )
    app_state.after_commit(session_id, offset=released.offset, to_dispatch=released.to_dispatch)
    async with app_state.database.transaction(caller.workspace_id) as db:
        return Json(await sessions.get(db, session_id))


@routes.put("/sessions/{session_id}/hold", response_model=schemas.Session)
async def hold_session(session_id: UUID, caller: CallerDep, app_state: AppStateDep, body: schemas.Hold | None = None) -> Response:
    """Set a legal hold: neither retention nor erasing its customer deletes the session until the hold is removed. Idempotent."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        by = await workspaces.signature(db, caller)
        return Json(await sessions.hold(db, session_id, body.reason if body else None, by=by))


@routes.delete("/sessions/{session_id}/hold", response_model=schemas.Session)
async def unhold_session(session_id: UUID, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Remove a session's legal hold: it is deleted when its retention period is over. Idempotent."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        return Json(await sessions.unhold(db, session_id))


@routes.put("/sessions/{session_id}/satisfaction", response_model=schemas.Session)
async def rate_session(session_id: UUID, body: schemas.Satisfaction, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Record the customer's satisfaction, whether or not the session has ended. The last score counts. Idempotent."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        return Json(await sessions.rate(db, session_id, body.score))


@routes.delete("/sessions/{session_id}/satisfaction", response_model=schemas.Session)
async def unrate_session(session_id: UUID, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Remove the customer's satisfaction. Idempotent."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        return Json(await sessions.rate(db, session_id, None))
