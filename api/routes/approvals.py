"""Approvals of tool calls: list them and decide about them."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from fastapi import Response

from api.dependencies import AppStateDep, CallerDep, router
from api.errors import Problem
from api.openapi import CONFLICT
from api.pagination import Paging, paged
from api.responses import Json
from api.schemas import approvals as schemas
from engine.enums import ApprovalStatus
from store.conversations import approvals

routes = router("approvals")
VERDICTS: dict[str, Literal["approved", "denied"]] = {"approve": "approved", "deny": "denied"}


@routes.get("/approvals", response_model=schemas.Approvals)
async def list_approvals(
    caller: CallerDep,
    app_state: AppStateDep,
    paging: Paging,
    status: ApprovalStatus | None = None,
    session_id: UUID | None = None,
    agent_id: UUID | None = None,
) -> Response:
    """List approvals, newest first. Those that wait for a decision have `status=pending`."""
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


@routes.get("/approvals/{approval_id}", response_model=schemas.Approval)
async def get_approval(approval_id: UUID, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Show an approval."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        return Json(await approvals.get(db, approval_id))


@routes.post("/approvals/{approval_id}/decision", response_model=schemas.Approval, responses=CONFLICT)
async def decide_approval(approval_id: UUID, body: schemas.Decision, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Decide about a tool call, once. An approved call is made exactly as shown or edited; the model is told of a denial and continues.

    409 if the approval has been decided or has expired, or if its turn has ended.
    """
    by = await app_state.signature(caller)
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
    app_state.after_commit(decided.approval["session_id"], offset=decided.offset, to_dispatch=decided.to_dispatch)
    return Json(decided.approval)
