"""Budgets: caps on the usage of model calls, in total or per day, of a workspace, an agent or a session."""

from __future__ import annotations

from uuid import UUID

from fastapi import Response

from api.dependencies import AppStateDep, CallerDep, router
from api.openapi import CONFLICT
from api.pagination import Paging, paged
from api.responses import Json
from api.schemas import budgets as schemas
from engine.enums import BudgetScope
from store.conversations import budgets

routes = router("budgets")


@routes.post("/budgets", status_code=201, response_model=schemas.Budget, responses=CONFLICT)
async def create_budget(body: schemas.BudgetCreate, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Cap the usage of model calls from now on. A turn whose next call might exceed a budget fails with `BudgetSpent`."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        budget = await budgets.create(
            db, caller.workspace_id, scope=body.scope, scope_id=body.scope_id, unit=body.unit, period=body.period, cap=body.amount
        )
    return Json(budget, 201, {"Location": f"/v1/budgets/{budget['id']}"})


@routes.get("/budgets", response_model=schemas.Budgets)
async def list_budgets(
    caller: CallerDep,
    app_state: AppStateDep,
    paging: Paging,
    scope: BudgetScope | None = None,
    scope_id: UUID | None = None,
) -> Response:
    """List budgets with their spent and reserved amounts, newest first."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        page = await budgets.page(db, scope=scope, scope_id=scope_id, limit=paging.limit, after=paging.after, total=paging.include_total)
    return paged(page)


@routes.get("/budgets/{budget_id}", response_model=schemas.Budget)
async def get_budget(budget_id: UUID, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Show a budget with its spent and reserved amounts."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        return Json(await budgets.get(db, budget_id))


@routes.patch("/budgets/{budget_id}", response_model=schemas.Budget)
async def change_budget(budget_id: UUID, body: schemas.BudgetChange, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Change the cap, from the next model call on."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        return Json(await budgets.change(db, budget_id, body.amount))


@routes.delete("/budgets/{budget_id}", status_code=204)
async def delete_budget(budget_id: UUID, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Delete a budget. Model calls in flight continue."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        await budgets.remove(db, budget_id)
    return Response(status_code=204)
