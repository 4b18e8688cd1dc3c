"""Agents, and the tools each may use."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import Header, Query, Response

from api.dependencies import AppStateDep, CallerDep, router
from api.openapi import PRECONDITION
from api.pagination import Paging, paged
from api.responses import Json, etag, versions
from api.schemas import requests, responses
from store.analytics import queries
from store.catalog import agents

routes = router("agents")
IfMatch = Annotated[str | None, Header(max_length=1000, description='Change only this version, like `"3"`: the ETag it came with.')]
ETAG: dict[str, Any] = {"headers": {"ETag": {"description": "The agent's version.", "schema": {"type": "string"}}}}


def _tagged(agent: dict[str, Any], status: int = 200) -> Json:
    return Json(agent, status, {"ETag": etag(agent["version"])})


@routes.post("/agents", status_code=201, response_model=responses.Agent, responses={201: ETAG})
async def create_agent(body: requests.AgentCreate, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Create an agent. Its tools are assigned with it, or not at all."""
    values = body.model_dump(exclude={"tool_ids", "default_tools"})
    tool_ids = body.tool_ids or body.default_tools
    async with app_state.database.transaction(caller.workspace_id) as db:
        agent = await agents.create(db, caller.workspace_id, values, tool_ids=tool_ids, created_by=caller.user_id)
    return Json(agent, 201, {"ETag": etag(agent["version"]), "Location": f"/v1/agents/{agent['id']}"})


@routes.get("/agents", response_model=responses.Agents | responses.AgentsWithStats)
async def list_agents(
    caller: CallerDep,
    app_state: AppStateDep,
    paging: Paging,
    status: requests.Status | None = None,
    search: Annotated[
        str | None, Query(max_length=200, description="A part of the name or description, in any case."), requests.Storable
    ] = None,
    shown: Annotated[Literal["stats"] | None, Query(alias="with", description="`stats`: what each has come to, as of now.")] = None,
) -> Response:
    """List agents, the newest first."""
    async with queries.snapshot(app_state.database, caller.workspace_id) as db:
        page = await agents.page(db, status=status, search=search, limit=paging.limit, after=paging.after, total=paging.include_total)
        if shown == "stats":
            told = await queries.stats(db, caller.workspace_id, [agent["id"] for agent in page.items])
            page = replace(page, items=[_with_stats(agent, told[agent["id"]]) for agent in page.items])
    return paged(page)


def _with_stats(agent: dict[str, Any], told: dict[str, Any]) -> dict[str, Any]:
    return agent | {
        "total_sessions": told["sessions_started"],
        "total_messages": told["cohort_messages"],
        "total_tokens_used": told["cohort_tokens"],
        "total_cost": Decimal(told["cohort_cost_usd"]),
        "last_active_at": told["last_active_at"],
        "active_sessions": told["active_sessions"],
        "recent_activity": told["last_active_at"],
        "tool_count": told["tool_count"],
    }


@routes.get("/agents/{agent_id}", response_model=responses.Agent, responses={200: ETAG})
async def get_agent(agent_id: UUID, caller: CallerDep, app_state: AppStateDep) -> Response:
    """Show an agent."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        return _tagged(await agents.get(db, agent_id))


@routes.patch("/agents/{agent_id}", response_model=responses.Agent, responses={200: ETAG, **PRECONDITION})
async def change_agent(
    agent_id: UUID, body: requests.AgentChange, caller: CallerDep, app_state: AppStateDep, if_match: IfMatch = None
) -> Response:
    """Change some of an agent's fields. Turns under way go on with what they began with."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        return _tagged(await agents.change(db, agent_id, body.given(), versions=versions(if_match)))


@routes.delete("/agents/{agent_id}", status_code=204, responses=PRECONDITION)
async def delete_agent(agent_id: UUID, caller: CallerDep, app_state: AppStateDep, if_match: IfMatch = None) -> Response:
    """Archive an agent: it is not found any more, and its sessions take no more messages. Harmless to repeat."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        await agents.delete(db, agent_id, versions=versions(if_match))
    return Response(status_code=204)


@routes.get("/agents/{agent_id}/tools", response_model=responses.AssignedTools)
async def list_agent_tools(agent_id: UUID, caller: CallerDep, app_state: AppStateDep) -> Response:
    """List the tools an agent may use, by name."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        return Json({"items": await agents.tools_of(db, agent_id)})


@routes.put("/agents/{agent_id}/tools", response_model=responses.AssignedTools, responses={200: ETAG, **PRECONDITION})
async def assign_agent_tools(
    agent_id: UUID, body: requests.ToolAssignment, caller: CallerDep, app_state: AppStateDep, if_match: IfMatch = None
) -> Response:
    """Say which tools an agent may use: these and no others."""
    async with app_state.database.transaction(caller.workspace_id) as db:
        agent = await agents.assign_tools(db, caller.workspace_id, agent_id, body.tool_ids, body.configuration, versions=versions(if_match))
        items = await agents.tools_of(db, agent_id)
    return Json({"items": items}, headers={"ETag": etag(agent["version"])})
