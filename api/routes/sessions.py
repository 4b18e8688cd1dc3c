"""Sessions: one conversation each."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import Query, Response

from api.dependencies import AppStateDep, CallerDep, router
from api.openapi import CONFLICT
from api.pagination import Paging, paged
from api.responses import Json
from api.schemas import requests, responses
from store.catalog import workspaces
from store.conversations import session_control, sessions

routes = router("sessions")


@routes.post("/sessions", status_code=201, response_model=responses.Session, responses=CONFLICT)
async def create_session(body: requests.SessionCreate, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Open a session with an agent."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        session = await sessions.create(db, caller.workspace_id, body.model_dump())
    return Json(session, 201, {"Location": f"/v1/sessions/{session['id']}"})


@routes.get("/sessions", response_model=responses.Sessions)
async def list_sessions(
    caller: CallerDep,
    app_state: AppStateDep,
    paging: Paging,
    agent_id: UUID | None = None,
    customer_id: Annotated[str | None, Query(max_length=100), requests.Storable] = None,
    status: requests.SessionStatus | None = None,
    quarantined: bool | None = None,
) -> Response:
    """List sessions, the newest first."""
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


@routes.get("/sessions/{session_id}", response_model=responses.Session)
async def get_session(session_id: UUID, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Show a session with its counters and its cost."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        return Json(await sessions.get(db, session_id))


@routes.post("/sessions/{session_id}/end", response_model=responses.Session)
async def end_session(session_id: UUID, caller: CallerDep, app_state: AppStateDep, body: requests.SessionEnd | None = None) -> Response:
    """Complete a session: it takes no more messages. An open turn goes on to its rest. Harmless to repeat."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        return Json(await sessions.end(db, session_id, body.reason if body else None))


@routes.put("/sessions/{session_id}/mode", response_model=responses.Session, responses=CONFLICT)
async def set_mode(session_id: UUID, body: requests.ModeChange, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Switch who answers. Once this has answered for `manual`, no message of the agent follows until the mode is `auto` again.

    Harmless to repeat.
    """
    async with app_state.database.transaction(caller.workspace_id) as db:
        by = await workspaces.signature(db, caller)
    switched = await session_control.set_mode(
        app_state.database, caller.workspace_id, session_id, body.mode, by=by, window=app_state.settings.workspace_in_flight
    )
    if switched.offset is not None:
        app_state.publisher.log_advanced(session_id, switched.offset)
    if switched.to_dispatch is not None:
        app_state.dispatcher.dispatch(switched.to_dispatch)
    async with app_state.database.transaction(caller.workspace_id) as db:
        return Json(await sessions.get(db, session_id))
