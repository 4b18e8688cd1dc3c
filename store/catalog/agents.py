"""Agents and the tools that each may use, as the API shows them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import delete as delete_from
from sqlalchemy import func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.errors import Conflict, NotFound, Rejected
from models import AgentRow, AgentToolRow, ToolRow
from store import pagination
from store.catalog import tools

WIRE = (
    AgentRow.id,
    AgentRow.name,
    AgentRow.description,
    AgentRow.status,
    AgentRow.composition_mode,
    AgentRow.system_prompt,
    AgentRow.model_provider,
    AgentRow.model_name,
    AgentRow.temperature,
    AgentRow.max_tokens,
    AgentRow.conversation_style,
    AgentRow.strategy,
    AgentRow.allow_interruption,
    AgentRow.allow_proactive_messages,
    AgentRow.data_retention_days,
    AgentRow.version,
    AgentRow.total_sessions,
    AgentRow.total_messages,
    AgentRow.total_tokens_used,
    AgentRow.total_cost,
    AgentRow.average_session_duration,
    AgentRow.last_active_at,
    AgentRow.created_by,
    AgentRow.created_at,
    AgentRow.updated_at,
)
LIVE = AgentRow.deleted_at.is_(None)


class Stale(Conflict):
    """The change was meant for an older version of the agent."""


async def create(
    db: AsyncConnection, workspace_id: UUID, values: Mapping[str, Any], *, tool_ids: Sequence[UUID] = (), created_by: UUID | None = None
) -> dict[str, Any]:
    """Create an agent that may use the tools `tool_ids`, and return it. Raises Rejected if a tool is not in the workspace."""
    row = insert(AgentRow).values(workspace_id=workspace_id, created_by=created_by, **values).returning(*WIRE)
    agent = dict((await db.execute(row)).mappings().one())
    if tool_ids:
        await _put_tools(db, workspace_id, agent["id"], tool_ids, None)
    return agent


async def get(db: AsyncConnection, agent_id: UUID) -> dict[str, Any]:
    """Return the agent. Raises NotFound, also if it was deleted."""
    row = (await db.execute(select(*WIRE).where(AgentRow.id == agent_id, LIVE))).mappings().one_or_none()
    if row is None:
        raise NotFound("no such agent")
    return dict(row)


async def page(
    db: AsyncConnection,
    *,
    status: str | None = None,
    search: str | None = None,
    limit: int = 20,
    after: str | None = None,
    total: bool = False,
) -> pagination.Page:
    """Return a page of the workspace's agents, the newest first. `search` is part of the name or description, case-insensitive."""
    query = select(*WIRE).where(LIVE)
    if status is not None:
        query = query.where(AgentRow.status == status)
    if search:
        query = query.where(or_(AgentRow.name.icontains(search, autoescape=True), AgentRow.description.icontains(search, autoescape=True)))
    return await pagination.read(db, query, AgentRow, limit=limit, after=after, total=total)


async def change(
    db: AsyncConnection, agent_id: UUID, values: Mapping[str, Any], *, versions: Collection[int] | None = None
) -> dict[str, Any]:
    """Change some of the agent's fields, increment its version, and return it. Without values the version stays.

    Raises:
        NotFound: the workspace has no such agent.
        Stale: its version is not one of `versions`.
    """
    agent = await _locked(db, agent_id, versions)
    if not values:
        return agent
    changed = update(AgentRow).where(AgentRow.id == agent_id).values(version=AgentRow.version + 1, **values).returning(*WIRE)
    return dict((await db.execute(changed)).mappings().one())


async def delete(db: AsyncConnection, agent_id: UUID, *, versions: Collection[int] | None = None) -> None:
    """Archive the agent: it is hidden, and its sessions take no more messages. Deleting it again changes nothing.

    Raises:
        NotFound: there never was such an agent.
        Stale: its version is not one of `versions`.
    """
    try:
        await _locked(db, agent_id, versions)
    except NotFound:
        if await db.scalar(select(AgentRow.id).where(AgentRow.id == agent_id)) is None:
            raise
        return
    await db.execute(
        update(AgentRow).where(AgentRow.id == agent_id).values(status="archived", deleted_at=func.now(), version=AgentRow.version + 1)
    )


async def tools_of(db: AsyncConnection, agent_id: UUID) -> list[dict[str, Any]]:
    """Return the tools that the agent may use, ordered by name. Raises NotFound."""
    await get(db, agent_id)
    query = (
        select(*tools.WIRE, AgentToolRow.configuration, AgentToolRow.enabled.label("assignment_enabled"))
        .join(AgentToolRow, AgentToolRow.tool_id == ToolRow.id)
        .where(AgentToolRow.agent_id == agent_id)
        .order_by(ToolRow.name)
    )
    return [dict(row) for row in (await db.execute(query)).mappings()]


async def assign_tools(
    db: AsyncConnection,
    workspace_id: UUID,
    agent_id: UUID,
    tool_ids: Sequence[UUID],
    configuration: Mapping[str, Any] | None = None,
    *,
    versions: Collection[int] | None = None,
) -> dict[str, Any]:
    """Let the agent use these tools and no others, increment its version, and return it.

    `configuration` is stored with each assignment; without it, tools that were assigned before keep theirs. Repeated ids count once.

    Raises:
        NotFound: the workspace has no such agent.
        Stale: its version is not one of `versions`.
        Rejected: a tool is not in the workspace.
    """
    await _locked(db, agent_id, versions)
    await db.execute(delete_from(AgentToolRow).where(AgentToolRow.agent_id == agent_id, AgentToolRow.tool_id.not_in(tool_ids)))
    await _put_tools(db, workspace_id, agent_id, tool_ids, configuration)
    changed = update(AgentRow).where(AgentRow.id == agent_id).values(version=AgentRow.version + 1).returning(*WIRE)
    return dict((await db.execute(changed)).mappings().one())


async def _put_tools(
    db: AsyncConnection, workspace_id: UUID, agent_id: UUID, tool_ids: Sequence[UUID], configuration: Mapping[str, Any] | None
) -> None:
    wanted = list(dict.fromkeys(tool_ids))
    known = set((await db.scalars(select(ToolRow.id).where(ToolRow.id.in_(wanted)))).all())
    if missing := [str(tool_id) for tool_id in wanted if tool_id not in known]:
        raise Rejected(f"Some tools not found or not accessible: {', '.join(missing)}")
    if not wanted:
        return
    rows = insert(AgentToolRow).values(
        [
            {"workspace_id": workspace_id, "agent_id": agent_id, "tool_id": tool_id, "configuration": configuration or {}}
            for tool_id in wanted
        ]
    )
    pair = (AgentToolRow.workspace_id, AgentToolRow.agent_id, AgentToolRow.tool_id)
    if configuration is None:
        await db.execute(rows.on_conflict_do_nothing(index_elements=pair))
    else:
        changed = {"configuration": rows.excluded.configuration, "updated_at": func.now()}
        await db.execute(rows.on_conflict_do_update(index_elements=pair, set_=changed))


async def _locked(db: AsyncConnection, agent_id: UUID, versions: Collection[int] | None) -> dict[str, Any]:
    """Lock the agent's row until commit and return the agent."""
    query = select(*WIRE).where(AgentRow.id == agent_id, LIVE).with_for_update(key_share=True)
    row = (await db.execute(query)).mappings().one_or_none()
    if row is None:
        raise NotFound("no such agent")
    if versions is not None and row["version"] not in versions:
        raise Stale(f"the agent has changed meanwhile; its version is {row['version']}")
    return dict(row)
