"""Rows for tests: a tenant with an agent, tools and sessions, written as the application's role."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import insert
from uuid_utils.compat import uuid7

from models import AgentRow, AgentToolRow, SessionRow, ToolIntegrationRow, ToolRow, WorkspaceRow
from store.database import Database


@dataclass(slots=True)
class Tenant:
    """A workspace with one agent and any number of sessions."""

    workspace_id: UUID
    agent_id: UUID
    session_ids: list[UUID] = field(default_factory=list)

    @property
    def session_id(self) -> UUID:
        return self.session_ids[0]


async def tenant(
    database: Database, *, sessions: int = 1, tools: tuple[dict[str, Any], ...] = (), workspace_id: UUID | None = None, **agent: Any
) -> Tenant:
    """Make a tenant, or an agent of the workspace given. Each of `tools` is a row of `tools`, with an `integration` if it has one.

    Its `configuration`, if any, is the agent's for this tool (`agent_tools.configuration`).
    """
    made = Tenant(workspace_id or uuid7(), uuid7(), [uuid7() for _ in range(sessions)])
    async with database.transaction(made.workspace_id) as db:
        if workspace_id is None:
            await db.execute(insert(WorkspaceRow).values(id=made.workspace_id, name="Acme"))
        await db.execute(
            insert(AgentRow).values({"id": made.agent_id, "workspace_id": made.workspace_id, "name": "Ada", "model_name": "gpt-4o"} | agent)
        )
        for given in tools:
            tool = {key: value for key, value in given.items() if key not in ("integration", "configuration")}
            tool_id = uuid7()
            await db.execute(
                insert(ToolRow).values({"id": tool_id, "workspace_id": made.workspace_id, "parameters": {"type": "object"}} | tool)
            )
            assigned = {"workspace_id": made.workspace_id, "agent_id": made.agent_id, "tool_id": tool_id}
            await db.execute(insert(AgentToolRow).values(assigned | {"configuration": given.get("configuration", {})}))
            if "integration" in given:
                await db.execute(
                    insert(ToolIntegrationRow).values(
                        {
                            "workspace_id": made.workspace_id,
                            "tool_id": tool_id,
                            "integration_type": "custom_tool",
                            "target_id": tool["name"],
                        }
                        | given["integration"]
                    )
                )
        await add_sessions(database, made, made.session_ids, db=db)
    return made


async def add_sessions(database: Database, made: Tenant, ids: list[UUID], *, db: Any) -> None:
    """Add sessions with these ids to a tenant."""
    if ids:
        await db.execute(
            insert(SessionRow), [{"id": session_id, "workspace_id": made.workspace_id, "agent_id": made.agent_id} for session_id in ids]
        )
