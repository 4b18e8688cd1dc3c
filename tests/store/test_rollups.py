"""Rollups equal a recount, whatever happened in which order and whenever they were brought up to date."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from uuid_utils.compat import uuid7

from engine.histogram import BOUNDS
from store.analytics import queries, rollups, totals
from store.analytics.queries import Days, Step
from store.database import APP_ROLE, MAINTENANCE_ROLE, Database
from tests.support.activity import Activity
from tests.support.factories import Tenant, tenant
from tests.support.recount import day, quarter, recount, rolled_up
from tests.support.servers import Databases

# Clocks go forward by an hour in St. John's, back by half an hour on Lord Howe; Kolkata is half an hour off all year. On the Azores and in
# Havana they go back to midnight, which comes twice.
FIRST = {
    "UTC": (2026, 3, 6),
    "Asia/Kolkata": (2026, 3, 6),
    "America/St_Johns": (2026, 3, 7),
    "Australia/Lord_Howe": (2026, 4, 3),
    "Atlantic/Azores": (2026, 10, 24),
    "America/Havana": (2026, 10, 31),
}


@pytest.fixture
def url(databases: Databases) -> Iterator[str]:
    made = databases.migrated()
    yield made
    databases.drop(made)


@asynccontextmanager
async def opened(url: str, role: str = APP_ROLE) -> AsyncIterator[Database]:
    database = Database(url, role=role, pool_size=2)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


async def rolled(url: str) -> None:
    async with opened(url, MAINTENANCE_ROLE) as maintenance:
        await rollups.add(maintenance)
        await totals.fold(maintenance)
        await rollups.cut_days_anew(maintenance)


async def two_agents(url: str, zone: str) -> list[Tenant]:
    async with opened(url) as database:
        made = await tenant(database, sessions=0, tools=({"name": "lookup"},))
        tenants = [made, await tenant(database, sessions=0, workspace_id=made.workspace_id), await tenant(database, sessions=0)]
    cut_in(url, zone)
    return tenants


def same(url: str, zone: str) -> None:
    """Assert that quarters, days and totals equal a recount."""
    assert rolled_up(url, "quarter") == recount(url, quarter)
    assert rolled_up(url, "day", f"(start AT TIME ZONE '{zone}')::date") == recount(url, day(zone))
    assert rolled_up(url, "total", "0") == recount(url, lambda at: 0)


async def answers_equal_a_recount(url: str, tenant: Tenant, zone: str) -> None:
    """Assert that each day, asked for alone, has the sessions that were started on it."""
    agents, _, _ = recount(url, day(zone))
    counted = {place: sums.get("sessions_started", 0) for (agent, place), sums in agents.items() if agent == tenant.agent_id}
    async with opened(url) as database:
        for one, count in counted.items():
            assert (await started(database, tenant, Days(one, one), "day")).get(one, 0) == count


@pytest.mark.parametrize("zone", list(FIRST))
def test_random_activity_equals_a_recount(databases: Databases, zone: str):
    """Things of the past are done in any order, and the rollups brought up to date at any moment between."""

    @settings(max_examples=4, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(seed=st.integers(0, 10**6), runs=st.lists(st.integers(0, 40), min_size=2, max_size=5))
    def check(seed: int, runs: list[int]) -> None:
        url = databases.migrated()
        activity = Activity(url, asyncio.run(two_agents(url, zone)), datetime(*FIRST[zone], tzinfo=UTC), 3, seed)
        try:
            for steps in runs:
                for _ in range(steps):
                    activity.step()
                asyncio.run(answers_equal_a_recount(url, activity.tenants[0], zone))
                asyncio.run(rolled(url))
            same(url, zone)
            asyncio.run(answers_equal_a_recount(url, activity.tenants[0], zone))
        finally:
            activity.close()
            databases.drop(url)

    check()


# When clocks change: midnight comes twice, or not at all.
TURNS = {
    "Atlantic/Azores": datetime(2026, 10, 25, 1, tzinfo=UTC),
    "America/Havana": datetime(2026, 11, 1, 5, tzinfo=UTC),
    "America/Santiago": datetime(2026, 9, 6, 4, tzinfo=UTC),
}


@pytest.mark.parametrize("zone", list(TURNS))
async def test_what_is_near_a_midnight_at_which_clocks_change_is_of_the_day_that_they_show(url: str, zone: str):
    made, turn = (await two_agents(url, zone))[0], TURNS[zone]
    times = [turn + timedelta(minutes=minutes) for minutes in (-90, -45, -30, -1, 0, 29, 45, 90)]
    by_day = Counter(map(day(zone), times))
    with psycopg.connect(url) as db:
        for at in times:
            db.execute(
                "INSERT INTO sessions (id, workspace_id, agent_id, started_at, last_activity_at) VALUES (%s, %s, %s, %s, %s)",
                (uuid7(), made.workspace_id, made.agent_id, at, at),
            )
    async with opened(url) as database:
        for rolled_in in (None, zone, "UTC"):  # queued, in days, and in quarters alone since days are those of another zone
            if rolled_in:
                cut_in(url, rolled_in)
                await rolled(url)
                cut_in(url, zone)
            for first, last in ((min(by_day), max(by_day)), *((one, one) for one in by_day)):
                expected = {one: count for one, count in by_day.items() if first <= one <= last}
                assert await started(database, made, Days(first, last), "day") == expected
                hours = await started(database, made, Days(first, last), "hour")
                assert Counter(day(zone)(at) for at in hours.elements()) == expected
    await rolled(url)
    same(url, zone)


def cut_in(url: str, zone: str) -> None:
    with psycopg.connect(url) as db:
        db.execute("UPDATE workspaces SET timezone = %s", [zone])


async def started(database: Database, tenant: Tenant, days: Days, by: Step) -> Counter[Any]:
    """How many sessions were started by what is answered, by day or by the moment at which an hour begins."""
    async with queries.snapshot(database, tenant.workspace_id) as db:
        _, told = await queries.step_by_step(db, tenant.workspace_id, tenant.agent_id, days, by)
        whole = await queries.in_all(db, tenant.workspace_id, tenant.agent_id, days)
    counts = Counter({sums["place"]: sums["sessions_started"] for sums, _ in told})
    assert whole["agent"]["sessions_started"] == counts.total()
    return counts


def test_the_bounds_in_the_database_are_the_engines(url: str):
    with psycopg.connect(url) as db:
        assert db.execute("SELECT histogram_bounds()").fetchone() == (list(BOUNDS),)
