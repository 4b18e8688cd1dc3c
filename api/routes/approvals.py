"""Approvals: what waits for a person, and their decision."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from fastapi import Response

from api.dependencies import AppStateDep, CallerDep, router
from api.errors import Problem
from api.openapi import CONFLICT
from api.pagination import Paging, paged
from api.responses import Json
from api.schemas import requests, responses
from store.catalog import workspaces
from store.conversations import approvals

routes = router("approvals")
VERDICTS: dict[str, Literal["approved", "denied"]] = {"approve": "approved", "deny": "denied"}


@routes.get("/approvals", response_model=responses.Approvals)
async def list_approvals(
    caller: CallerDep,
    app_state: AppStateDep,
    paging: Paging,
    status: requests.ApprovalStatus | None = None,
    session_id: UUID | None = None,
    agent_id: UUID | None = None,
) -> Response:
    """List approvals, the newest first; those that wait for a decision with `status=pending`."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        page = await approvals.page(
            db,
            status=status,
            session_id=session_id,
            agent_id=agent_id,
            limit=paging.limit,
            after=paging.after,
            total=paging.include_total,
        )
    return paged(page)


@routes.get("/approvals/{approval_id}", response_model=responses.Approval)
async def get_approval(approval_id: UUID, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Show an approval."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        return Json(await approvals.get(db, approval_id))


@routes.post("/approvals/{approval_id}/decision", response_model=responses.Approval, responses=CONFLICT)
async def decide_approval(approval_id: UUID, body: requests.Decision, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Decide about a tool call, once. Approved, it is made exactly as shown or edited; denied, the model is told so and goes on.

    409 where it was decided before, has expired, or its turn is over.
    """
    async with app_state.database.transaction(caller.workspace_id) as db:
        by = await workspaces.signature(db, caller)
    try:
        decided = await approvals.decide(
            app_state.database,
            caller.workspace_id,
            approval_id,
            VERDICTS[body.decision],
            by=by,
            reason=body.reason,
            edited_arguments=body.edited_arguments,
        )
    except approvals.Unfit as error:
        raise Problem(422, str(error), errors=[("body.edited_arguments", failure) for failure in error.failures]) from None
    app_state.publisher.log_advanced(decided.approval["session_id"], decided.offset)
    if decided.to_dispatch is not None:
        app_state.dispatcher.dispatch(decided.to_dispatch)
    return Json(decided.approval)
