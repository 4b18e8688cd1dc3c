"""Agents, and the tools assigned to them."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import Header, Query, Response

from api.dependencies import AppStateDep, CallerDep, router
from api.openapi import PRECONDITION
from api.pagination import Paging, paged
from api.responses import Json, accepted_versions, etag
from api.schemas import agents as schemas
from api.schemas.common import Storable
from engine.enums import AgentStatus
from store.analytics import queries
from store.catalog import agents

routes = router("agents")
IfMatch = Annotated[str | None, Header(max_length=1000, description='Change only this version: an ETag of a response, like `"3"`.')]
ETAG: dict[str, Any] = {"headers": {"ETag": {"description": "The agent's version.", "schema": {"type": "string"}}}}


def _with_etag(agent: dict[str, Any]) -> Json:
    return Json(agent, headers={"ETag": etag(agent["version"])})


@routes.post("/agents", status_code=201, response_model=schemas.Agent, responses={201: ETAG})
async def create_agent(body: schemas.AgentCreate, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Create an agent and assign its tools, in one transaction."""
    values = body.model_dump(exclude={"tool_ids", "default_tools"})
    tool_ids = body.tool_ids or body.default_tools
    async with app_state.database.transaction(caller.workspace_id) as db:
        agent = await agents.create(db, caller.workspace_id, values, tool_ids=tool_ids, created_by=caller.user_id)
    return Json(agent, 201, {"ETag": etag(agent["version"]), "Location": f"/v1/agents/{agent['id']}"})


@routes.get("/agents", response_model=schemas.Agents | schemas.AgentsWithStats)
async def list_agents(
    caller: CallerDep,
    app_state: AppStateDep,
    paging: Paging,
    status: AgentStatus | None = None,
    search: Annotated[
        str | None, Query(max_length=200, description="A part of the name or description, case-insensitive."), Storable
    ] = None,
    extra: Annotated[Literal["stats"] | None, Query(alias="with", description="`stats`: include current totals of each agent.")] = None,
) -> Response:
    """List agents, newest first."""
    async with queries.snapshot(app_state.database, caller.workspace_id) as db:
        page = await agents.page(db, status=status, search=search, limit=paging.limit, after=paging.after, total=paging.include_total)
        if extra == "stats":
            totals = await queries.stats(db, caller.workspace_id, [agent["id"] for agent in page.items])
            page = replace(page, items=[_with_totals(agent, totals[agent["id"]]) for agent in page.items])
    return paged(page)


def _with_totals(agent: dict[str, Any], totals: dict[str, Any]) -> dict[str, Any]:
    return agent | {
        "total_sessions": totals["sessions_started"],
        "total_messages": totals["cohort_messages"],
        "total_tokens_used": totals["cohort_tokens"],
        "total_cost": Decimal(totals["cohort_cost_usd"]),
        "last_active_at": totals["last_active_at"],
        "active_sessions": totals["active_sessions"],
        "recent_activity": totals["last_active_at"],
        "tool_count": totals["tool_count"],
    }


@routes.get("/agents/{agent_id}", response_model=schemas.Agent, responses={200: ETAG})
async def get_agent(agent_id: UUID, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Show an agent."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        return _with_etag(await agents.get(db, agent_id))


@routes.patch("/agents/{agent_id}", response_model=schemas.Agent, responses={200: ETAG, **PRECONDITION})
async def change_agent(
    agent_id: UUID, body: schemas.AgentChange, caller: CallerDep, app_state: AppStateDep, if_match: IfMatch = None
) -> Response:
    """Change some of an agent's fields. Turns that have started keep the version they started with."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        return _with_etag(await agents.change(db, agent_id, body.given(), versions=accepted_versions(if_match)))


@routes.delete("/agents/{agent_id}", status_code=204, responses=PRECONDITION)
async def delete_agent(agent_id: UUID, caller: CallerDep, app_state: AppStateDep, if_match: IfMatch = None) -> Response:
    """Archive an agent: it is no longer found, and its sessions accept no more messages. Idempotent."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        await agents.delete(db, agent_id, versions=accepted_versions(if_match))
    return Response(status_code=204)


@routes.get("/agents/{agent_id}/tools", response_model=schemas.AssignedTools)
async def list_agent_tools(agent_id: UUID, caller: CallerDep, app_state: AppStateDep) -> Response:
    """List the tools an agent may use, by name."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        return Json({"items": await agents.tools_of(db, agent_id)})


@routes.put("/agents/{agent_id}/tools", response_model=schemas.AssignedTools, responses={200: ETAG, **PRECONDITION})
async def assign_agent_tools(
    agent_id: UUID, body: schemas.ToolAssignment, caller: CallerDep, app_state: AppStateDep, if_match: IfMatch = None
) -> Response:
    """Replace the tools an agent may use."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        agent = await agents.assign_tools(
            db, caller.workspace_id, agent_id, body.tool_ids, body.configuration, versions=accepted_versions(if_match)
        )
        items = await agents.tools_of(db, agent_id)
    return Json({"items": items}, headers={"ETag": etag(agent["version"])})
