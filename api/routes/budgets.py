"""Budgets: what model calls may use in all or a day, of a workspace, an agent or a session."""

from __future__ import annotations

from uuid import UUID

from fastapi import Response

from api.dependencies import AppStateDep, CallerDep, router
from api.openapi import CONFLICT
from api.pagination import Paging, paged
from api.responses import Json
from api.schemas import requests, responses
from engine.enums import BudgetPeriod, BudgetScope, BudgetUnit
from store.conversations import budgets

routes = router("budgets")


@routes.post("/budgets", status_code=201, response_model=responses.Budget, responses=CONFLICT)
async def create_budget(body: requests.BudgetCreate, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Cap what model calls may use, from now on. A turn whose next call might exceed a budget fails with `BudgetSpent`."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        made = await budgets.create(
            db,
            caller.workspace_id,
            scope=BudgetScope(body.scope),
            scope_id=body.scope_id,
            unit=BudgetUnit(body.unit),
            period=BudgetPeriod(body.period),
            cap=body.amount,
        )
    return Json(made, 201, {"Location": f"/v1/budgets/{made['id']}"})


@routes.get("/budgets", response_model=responses.Budgets)
async def list_budgets(
    caller: CallerDep,
    app_state: AppStateDep,
    paging: Paging,
    scope: BudgetScope | None = None,
    scope_id: UUID | None = None,
) -> Response:
    """List budgets with what is spent and held of them, the newest first."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        page = await budgets.page(db, scope=scope, scope_id=scope_id, limit=paging.limit, after=paging.after, total=paging.include_total)
    return paged(page)


@routes.get("/budgets/{budget_id}", response_model=responses.Budget)
async def get_budget(budget_id: UUID, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Show a budget with what is spent and held of it."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        return Json(await budgets.get(db, budget_id))


@routes.patch("/budgets/{budget_id}", response_model=responses.Budget)
async def change_budget(budget_id: UUID, body: requests.BudgetChange, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Set another cap, from the next model call on."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        return Json(await budgets.change(db, budget_id, body.amount))


@routes.delete("/budgets/{budget_id}", status_code=204)
async def delete_budget(budget_id: UUID, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Remove a budget. Model calls under way go on."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        await budgets.remove(db, budget_id)
    return Response(status_code=204)
