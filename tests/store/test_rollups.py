"""Rollups equal a recount, for any order of activity and of runs of the roll-up."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from uuid_utils.compat import uuid7

from engine.histogram import BOUNDS
from store.analytics.queries import Days
from tests.support.activity import Activity
from tests.support.db import opened
from tests.support.recount import day
from tests.support.rollup_checks import (
    assert_rollups_equal_recount,
    assert_sessions_started_equal_recount,
    make_tenants,
    roll_up,
    sessions_started,
    set_time_zone,
)
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
def database_url(fresh_database_url: str) -> str:
    """Give each test a database of its own."""
    return fresh_database_url


@pytest.mark.parametrize("zone", list(FIRST))
def test_random_activity_equals_a_recount(databases: Databases, zone: str):
    """Past activity is recorded in any order, and the rollups are brought up to date at any moment in between."""

    @settings(max_examples=4, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(seed=st.integers(0, 10**6), runs=st.lists(st.integers(0, 40), min_size=2, max_size=5))
    def check(seed: int, runs: list[int]) -> None:
        database_url = databases.migrated()
        activity = Activity(database_url, asyncio.run(make_tenants(database_url, zone)), datetime(*FIRST[zone], tzinfo=UTC), 3, seed)
        try:
            for steps in runs:
                for _ in range(steps):
                    activity.step()
                asyncio.run(assert_sessions_started_equal_recount(database_url, activity.tenants[0], zone))
                asyncio.run(roll_up(database_url))
            assert_rollups_equal_recount(database_url, zone)
            asyncio.run(assert_sessions_started_equal_recount(database_url, activity.tenants[0], zone))
        finally:
            activity.close()
            databases.drop(database_url)

    check()


# When clocks change: midnight comes twice, or not at all.
TURNS = {
    "Atlantic/Azores": datetime(2026, 10, 25, 1, tzinfo=UTC),
    "America/Havana": datetime(2026, 11, 1, 5, tzinfo=UTC),
    "America/Santiago": datetime(2026, 9, 6, 4, tzinfo=UTC),
}


@pytest.mark.parametrize("zone", list(TURNS))
async def test_clock_change_at_midnight_counts_on_local_day(database_url: str, zone: str):
    made, turn = (await make_tenants(database_url, zone))[0], TURNS[zone]
    times = [turn + timedelta(minutes=minutes) for minutes in (-90, -45, -30, -1, 0, 29, 45, 90)]
    by_day = Counter(map(day(zone), times))
    with psycopg.connect(database_url) as db:
        for at in times:
            db.execute(
                "INSERT INTO sessions (id, workspace_id, agent_id, started_at, last_activity_at) VALUES (%s, %s, %s, %s, %s)",
                (uuid7(), made.workspace_id, made.agent_id, at, at),
            )
    async with opened(database_url) as database:
        # queued; rolled up by day; and rolled up by quarter only, because the days are those of another zone
        for rolled_in in (None, zone, "UTC"):
            if rolled_in:
                set_time_zone(database_url, rolled_in)
                await roll_up(database_url)
                set_time_zone(database_url, zone)
            for first, last in ((min(by_day), max(by_day)), *((one, one) for one in by_day)):
                expected = {one: count for one, count in by_day.items() if first <= one <= last}
                assert await sessions_started(database, made, Days(first, last), "day") == expected
                hours = await sessions_started(database, made, Days(first, last), "hour")
                assert Counter(day(zone)(at) for at in hours.elements()) == expected
    await roll_up(database_url)
    assert_rollups_equal_recount(database_url, zone)


def test_histogram_bounds_equal_engines(database_url: str):
    with psycopg.connect(database_url) as db:
        assert db.execute("SELECT histogram_bounds()").fetchone() == (list(BOUNDS),)
