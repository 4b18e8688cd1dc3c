"""Tools, and what they are mapped to."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import Query, Response

from api.dependencies import AppStateDep, CallerDep, router
from api.openapi import CONFLICT
from api.pagination import Paging, paged
from api.responses import Json
from api.schemas import requests, responses
from store.catalog import tool_health, tools

routes = router("tools")


@routes.post("/tools", status_code=201, response_model=responses.Tool, responses=CONFLICT)
async def create_tool(body: requests.ToolCreate, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Create a tool: what the model sees. It is of no use until it is mapped to something (an integration) and assigned to an agent."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        tool = await tools.create(db, caller.workspace_id, body.model_dump())
    return Json(tool, 201, {"Location": f"/v1/tools/{tool['id']}"})


@routes.get("/tools", response_model=responses.Tools)
async def list_tools(caller: CallerDep, app_state: AppStateDep, paging: Paging) -> Response:
    """List tools, the newest first."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        return paged(await tools.page(db, limit=paging.limit, after=paging.after, total=paging.include_total))


@routes.get("/tools/{tool_id}", response_model=responses.Tool)
async def get_tool(tool_id: UUID, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Show a tool."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        return Json(await tools.get(db, tool_id))


@routes.patch("/tools/{tool_id}", response_model=responses.Tool, responses=CONFLICT)
async def change_tool(tool_id: UUID, body: requests.ToolChange, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Change some of a tool's fields."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        return Json(await tools.change(db, tool_id, body.given()))


@routes.post("/tools/{tool_id}/integrations", status_code=201, response_model=responses.Integration, responses=CONFLICT)
async def create_integration(tool_id: UUID, body: requests.IntegrationCreate, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Map a tool to something real. Its secrets are sealed, and never shown again."""
    values = body.model_dump(exclude={"secrets"})
    values["target_id"] = body.target_id or str(body.configuration.get("url", ""))
    async with app_state.database.transaction(caller.workspace_id) as db:
        made = await tools.integrate(db, caller.workspace_id, tool_id, values, body.secrets, app_state.box)
    return Json(made, 201)


@routes.get("/tools/{tool_id}/integrations", response_model=responses.Integrations)
async def list_integrations(tool_id: UUID, caller: CallerDep, app_state: AppStateDep) -> Response:
    """List a tool's integrations in the order they are tried."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        return Json({"items": await tools.integrations_of(db, tool_id)})


@routes.get("/tools/{tool_id}/health", response_model=responses.HealthChanges)
async def list_health_changes(
    tool_id: UUID, caller: CallerDep, app_state: AppStateDep, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> Response:
    """List when the health of a tool's integrations became another, the newest first. How each is now, its integrations say."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        return Json({"items": await tool_health.changes_of_tool(db, tool_id, limit)})


@routes.patch("/tools/{tool_id}/integrations/{integration_id}", response_model=responses.Integration, responses=CONFLICT)
async def change_integration(
    tool_id: UUID, integration_id: UUID, body: requests.IntegrationChange, caller: CallerDep, app_state: AppStateDep
) -> Response:
    """Change some of an integration's fields. `secrets` replaces those it names and removes those it gives a null."""
    values = {name: value for name, value in body.given().items() if name != "secrets"}
    async with app_state.database.transaction(caller.workspace_id) as db:
        return Json(await tools.change_integration(db, caller.workspace_id, tool_id, integration_id, values, body.secrets, app_state.box))


@routes.delete("/tools/{tool_id}/integrations/{integration_id}", status_code=204)
async def delete_integration(tool_id: UUID, integration_id: UUID, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Remove an integration, its secrets with it."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        await tools.remove_integration(db, tool_id, integration_id)
    return Response(status_code=204)
