"""An agent with much activity, half of which is in the rollups."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from store.analytics import rollups
from store.database import MAINTENANCE_ROLE
from tests.support import factories
from tests.support.activity import Activity
from tests.support.api_server import Service, Tenant, run_in_thread
from tests.support.db import opened

ZONE = "Asia/Kolkata"
FIRST = datetime(2026, 3, 6, tzinfo=UTC)


def busy_agent(service: Service, workspace: Tenant) -> str:
    """Make an agent with 300 random changes, of which the first 150 are rolled up; return its id."""
    workspace.tool("lookup")
    agent_id: str = workspace.agent()["id"]
    service.sql("UPDATE workspaces SET timezone = %s WHERE id = %s", ZONE, workspace.workspace_id)
    made = factories.Tenant(workspace.workspace_id, UUID(agent_id))
    activity = Activity(service.database_url, [made], FIRST, 4, 7)
    for step in range(300):
        activity.step()
        if step == 150:
            roll_up(service)
    activity.close()
    return agent_id


def roll_up(service: Service) -> None:
    """Bring the rollups up to date, as the scheduled jobs do."""

    async def add() -> None:
        async with opened(service.database_url, MAINTENANCE_ROLE) as maintenance:
            await rollups.add(maintenance)
            await rollups.cut_days_anew(maintenance)

    run_in_thread(add)
