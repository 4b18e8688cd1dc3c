"""Rollups compared with a recount of the rows they are made from."""

from __future__ import annotations

from collections import Counter
from typing import Any

from store.analytics import queries, rollups, totals
from store.analytics.queries import Days, Step
from store.database import MAINTENANCE_ROLE, Database
from tests.support.db import fetch, opened
from tests.support.factories import Tenant, tenant
from tests.support.recount import day, quarter, recount, rolled_up


async def make_tenants(url: str, zone: str) -> list[Tenant]:
    """Make two agents of one workspace and one of another, both workspaces in the time zone `zone`."""
    async with opened(url) as database:
        made = await tenant(database, sessions=0, tools=({"name": "lookup"},))
        tenants = [made, await tenant(database, sessions=0, workspace_id=made.workspace_id), await tenant(database, sessions=0)]
    set_time_zone(url, zone)
    return tenants


def set_time_zone(url: str, zone: str) -> None:
    """Set the time zone of every workspace."""
    fetch(url, "UPDATE workspaces SET timezone = %s", zone)


async def roll_up(url: str) -> None:
    """Bring rollups, totals and days up to date, as the scheduled jobs do."""
    async with opened(url, MAINTENANCE_ROLE) as maintenance:
        await rollups.add(maintenance)
        await totals.fold(maintenance)
        await rollups.cut_days_anew(maintenance)


def assert_rollups_equal_recount(url: str, zone: str) -> None:
    """Assert that quarters, days and totals equal a recount."""
    assert rolled_up(url, "quarter") == recount(url, quarter)
    assert rolled_up(url, "day", f"(start AT TIME ZONE '{zone}')::date") == recount(url, day(zone))
    assert rolled_up(url, "total", "0") == recount(url, lambda at: 0)


async def assert_sessions_started_equal_recount(url: str, tenant: Tenant, zone: str) -> None:
    """Assert that analytics of each single day count the sessions that were started on it."""
    agents, _, _ = recount(url, day(zone))
    counted = {place: sums.get("sessions_started", 0) for (agent, place), sums in agents.items() if agent == tenant.agent_id}
    async with opened(url) as database:
        for one, count in counted.items():
            assert (await sessions_started(database, tenant, Days(one, one), "day")).get(one, 0) == count


async def sessions_started(database: Database, tenant: Tenant, days: Days, by: Step) -> Counter[Any]:
    """Return how many sessions were started, as analytics say, by day or by the moment at which an hour begins."""
    async with queries.snapshot(database, tenant.workspace_id) as db:
        _, steps = await queries.step_by_step(db, tenant.workspace_id, tenant.agent_id, days, by)
        whole = await queries.in_all(db, tenant.workspace_id, tenant.agent_id, days)
    counts = Counter({sums["place"]: sums["sessions_started"] for sums, _ in steps})
    assert whole["agent"]["sessions_started"] == counts.total()
    return counts
