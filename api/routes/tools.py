"""Tools, and the integrations they are mapped to."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import Query, Response

from api.dependencies import AppStateDep, CallerDep, router
from api.openapi import CONFLICT
from api.pagination import Paging, paged
from api.responses import Json
from api.schemas import tools as schemas
from store.catalog import tool_health, tools

routes = router("tools")


@routes.post("/tools", status_code=201, response_model=schemas.Tool, responses=CONFLICT)
async def create_tool(body: schemas.ToolCreate, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Create a tool. It can be used once it has an integration and is assigned to an agent."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        tool = await tools.create(db, caller.workspace_id, body.model_dump())
    return Json(tool, 201, {"Location": f"/v1/tools/{tool['id']}"})


@routes.get("/tools", response_model=schemas.Tools)
async def list_tools(caller: CallerDep, app_state: AppStateDep, paging: Paging) -> Response:
    """List tools, newest first."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        return paged(await tools.page(db, limit=paging.limit, after=paging.after, total=paging.include_total))


@routes.get("/tools/{tool_id}", response_model=schemas.Tool)
async def get_tool(tool_id: UUID, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Show a tool."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        return Json(await tools.get(db, tool_id))


@routes.patch("/tools/{tool_id}", response_model=schemas.Tool, responses=CONFLICT)
async def change_tool(tool_id: UUID, body: schemas.ToolChange, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Change some of a tool's fields."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        return Json(await tools.change(db, tool_id, body.given()))


@routes.post("/tools/{tool_id}/integrations", status_code=201, response_model=schemas.Integration, responses=CONFLICT)
async def create_integration(tool_id: UUID, body: schemas.IntegrationCreate, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Map a tool to an integration. Its secrets are encrypted and never shown again."""
    values = body.model_dump(exclude={"secrets"})
    values["target_id"] = body.target_id or str(body.configuration.get("url", ""))
    async with app_state.database.transaction(caller.workspace_id) as db:
        integration = await tools.integrate(db, caller.workspace_id, tool_id, values, body.secrets, app_state.box)
    return Json(integration, 201)


@routes.get("/tools/{tool_id}/integrations", response_model=schemas.Integrations)
async def list_integrations(tool_id: UUID, caller: CallerDep, app_state: AppStateDep) -> Response:
    """List a tool's integrations in the order in which they are tried."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        return Json({"items": await tools.integrations_of(db, tool_id)})


@routes.get("/tools/{tool_id}/health", response_model=schemas.HealthChanges)
async def list_health_changes(
    tool_id: UUID, caller: CallerDep, app_state: AppStateDep, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> Response:
    """List changes of the health of a tool's integrations, newest first. The current health is a field of each integration."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        return Json({"items": await tool_health.changes_of_tool(db, tool_id, limit)})


@routes.patch("/tools/{tool_id}/integrations/{integration_id}", response_model=schemas.Integration, responses=CONFLICT)
async def change_integration(
    tool_id: UUID, integration_id: UUID, body: schemas.IntegrationChange, caller: CallerDep, app_state: AppStateDep
) -> Response:
    """Change some of an integration's fields. `secrets` replaces the ones it names, and removes those set to null."""
    values = {name: value for name, value in body.given().items() if name != "secrets"}
    async with app_state.database.transaction(caller.workspace_id) as db:
        return Json(await tools.change_integration(db, caller.workspace_id, tool_id, integration_id, values, body.secrets, app_state.box))


@routes.delete("/tools/{tool_id}/integrations/{integration_id}", status_code=204)
async def delete_integration(tool_id: UUID, integration_id: UUID, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Delete an integration and its secrets."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        await tools.remove_integration(db, tool_id, integration_id)
    return Response(status_code=204)
