"""Rollups equal a recount, whatever happened in which order and whenever they were brought up to date."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.histogram import BOUNDS
from store import rollups, totals
from store.database import MAINTENANCE_ROLE, Database
from tests.factories import Tenant, tenant
from tests.recount import day, quarter, recount, rolled_up
from tests.servers import Databases
from tests.store.activity import Activity

# Clocks go forward by an hour in St. John's, back by half an hour on Lord Howe; Kolkata is half an hour off all year.
FIRST = {"UTC": (2026, 3, 6), "Asia/Kolkata": (2026, 3, 6), "America/St_Johns": (2026, 3, 7), "Australia/Lord_Howe": (2026, 4, 3)}


@pytest.fixture
def url(databases: Databases) -> Iterator[str]:
    made = databases.migrated()
    yield made
    databases.drop(made)


async def rolled(url: str) -> None:
    maintenance = Database(url, role=MAINTENANCE_ROLE, pool_size=2)
    await maintenance.open()
    await rollups.add(maintenance)
    await totals.fold(maintenance)
    await rollups.cut_days_anew(maintenance)
    await maintenance.close()


async def two_agents(url: str, zone: str) -> list[Tenant]:
    database = Database(url, pool_size=2)
    await database.open()
    made = await tenant(database, sessions=0, tools=({"name": "lookup"},))
    tenants = [made, await tenant(database, sessions=0, workspace_id=made.workspace_id), await tenant(database, sessions=0)]
    await database.close()
    with psycopg.connect(url) as db:
        db.execute("UPDATE workspaces SET timezone = %s", [zone])
    return tenants


def same(url: str, zone: str) -> None:
    """Assert that quarters, days and totals equal a recount."""
    assert rolled_up(url, "quarter") == recount(url, quarter)
    assert rolled_up(url, "day", f"(start AT TIME ZONE '{zone}')::date") == recount(url, day(zone))
    assert rolled_up(url, "total", "0") == recount(url, lambda at: 0)


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
                asyncio.run(rolled(url))
            same(url, zone)
        finally:
            activity.close()
            databases.drop(url)

    check()


def test_the_bounds_in_the_database_are_the_engines(url: str):
    with psycopg.connect(url) as db:
        assert db.execute("SELECT histogram_bounds()").fetchone() == (list(BOUNDS),)
