"""Rollups with late commits, older sessions, deletions and a changed time zone; and totals in the rows of agents and tools."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import text

from store import database
from store.analytics import rollups, totals
from store.database import MAINTENANCE_ROLE, Database
from tests.support.activity import Activity
from tests.support.db import opened
from tests.support.recount import Counted, recount, rolled_up
from tests.support.rollup_checks import assert_rollups_equal_recount, assert_sessions_started_equal_recount, make_tenants, set_time_zone

FIRST = datetime(2026, 3, 6, tzinfo=UTC)


@pytest.fixture
def database_url(fresh_database_url: str) -> str:
    """Give each test a database of its own."""
    return fresh_database_url


@pytest.fixture
async def activity(database_url: str) -> AsyncIterator[Activity]:
    made = Activity(database_url, await make_tenants(database_url, "UTC"), FIRST, 3, 11)
    yield made
    made.close()


def steps(activity: Activity, count: int) -> None:
    for _ in range(count):
        activity.step()


def all_of(database_url: str) -> tuple[tuple[Counted, ...], ...]:
    return tuple(rolled_up(database_url, grain, "start::text") for grain in ("quarter", "day", "total"))


async def test_late_commit_is_counted(database_url: str, maintenance: Database, activity: Activity):
    while not activity.db.execute("SELECT 1 FROM turns WHERE status = 'done'").fetchone():
        activity.step()
    ((locked,),) = activity.db.execute("SELECT session_id FROM turns WHERE status = 'done' LIMIT 1").fetchall()
    with psycopg.connect(database_url) as late:
        late.execute("UPDATE sessions SET tokens_used = tokens_used + 9 WHERE id = %s", [locked])
        while activity.sessions[-1][1] == locked:
            activity.opens()
        activity.db.execute("UPDATE sessions SET satisfaction_score = 2 WHERE id = %s", [activity.sessions[-1][1]])

        await rollups.add(maintenance)  # while the other transaction is open: it does not wait, and skips the locked session's facts

        left = activity.db.execute("SELECT DISTINCT session_id, kind FROM usage_facts").fetchall()
        assert left == [(locked, "turn")]
    await rollups.add(maintenance)
    assert await rollups.to_come(maintenance) == {"facts": 0, "sessions": 0}
    assert_rollups_equal_recount(database_url, "UTC")


async def test_running_again_changes_nothing(database_url: str, maintenance: Database, activity: Activity):
    steps(activity, 60)
    await rollups.add(maintenance)
    assert sum((await totals.fold(maintenance)).values()) > 0
    before, rows = all_of(database_url), _versions(database_url)

    assert await rollups.add(maintenance) == (0, 0)
    assert await rollups.cut_days_anew(maintenance) == 0
    assert await totals.fold(maintenance) == {"agents": 0, "tools": 0}

    assert (all_of(database_url), _versions(database_url)) == (before, rows)


async def test_older_sessions_are_counted_while_they_change(database_url: str, maintenance: Database, activity: Activity):
    activity.db.execute("SET session_replication_role = replica")  # so that no trigger inserts usage facts
    steps(activity, 120)
    activity.db.execute("UPDATE sessions SET counted = false")
    activity.db.execute("SET session_replication_role = origin")
    steps(activity, 40)  # to old sessions, and to new ones

    while await rollups.note_older_sessions(maintenance, 5):
        steps(activity, 5)
        await rollups.add(maintenance)
    steps(activity, 20)
    await rollups.add(maintenance)

    assert_rollups_equal_recount(database_url, "UTC")


async def test_deleted_session_stays_counted_with_late_changes(database_url: str, maintenance: Database, activity: Activity):
    steps(activity, 150)
    await rollups.add(maintenance)
    before = all_of(database_url)
    with psycopg.connect(database_url) as db:
        ended = [row[0] for row in db.execute("SELECT id FROM sessions WHERE status <> 'active'")]
        assert ended
        for table in ("events", "model_calls", "tool_calls", "turns"):
            db.execute(f"DELETE FROM {table} WHERE session_id = ANY (%s)", [ended])
        db.execute("DELETE FROM sessions WHERE id = ANY (%s)", [ended])
    await rollups.add(maintenance)
    assert all_of(database_url) == before

    left = next(session for _, session, _ in activity.sessions if session not in ended)
    with psycopg.connect(database_url) as db:
        db.execute("UPDATE sessions SET satisfaction_score = 4 WHERE id = %s AND satisfaction_score IS NULL", [left])
        db.execute("UPDATE sessions SET cost_usd = cost_usd + 7 WHERE id = %s", [left])
    await rollups.add(maintenance)
    assert _total(all_of(database_url)[1], "cohort_cost_usd") == _total(before[1], "cohort_cost_usd") + 7
    assert _total(all_of(database_url)[1], "sessions_started") == _total(before[1], "sessions_started")


async def test_erased_active_session_is_not_counted_as_active(database_url: str, maintenance: Database, activity: Activity):
    activity.opens()
    await rollups.add(maintenance)
    with psycopg.connect(database_url) as db:
        db.execute("DELETE FROM sessions")
    await rollups.add(maintenance)

    assert _total(all_of(database_url)[2], "sessions_started") == 1
    assert _total(all_of(database_url)[2], "active_sessions") == 0


async def test_days_of_new_time_zone_equal_a_recount(database_url: str, maintenance: Database, activity: Activity):
    steps(activity, 100)
    await rollups.add(maintenance)
    for zone in ("Australia/Lord_Howe", "America/St_Johns", "UTC"):
        with psycopg.connect(database_url) as db:
            db.execute("UPDATE workspaces SET timezone = %s", [zone])
        steps(activity, 10)
        await rollups.add(maintenance)  # to days of the zone before
        assert await rollups.cut_days_anew(maintenance) > 0
        steps(activity, 10)
        await rollups.add(maintenance)
        assert_rollups_equal_recount(database_url, zone)


async def test_everything_is_counted_once_while_days_are_recomputed(
    database_url: str, maintenance: Database, activity: Activity, monkeypatch: pytest.MonkeyPatch
):
    """Also if a run ends in the middle, the time zone is changed once more, or two runs are concurrent."""
    monkeypatch.setattr(rollups, "DAYS", 2)
    steps(activity, 150)
    await rollups.add(maintenance)
    for zone, pieces in (("Australia/Lord_Howe", 1), ("Asia/Kolkata", 2), ("America/St_Johns", 99)):
        set_time_zone(database_url, zone)
        for made in activity.tenants:
            done = 0
            while done < pieces and await rollups.cut_some_days(maintenance, made.workspace_id, made.agent_id) is False:
                steps(activity, 4)
                await assert_sessions_started_equal_recount(database_url, made, zone)
                await rollups.add(maintenance)
                await assert_sessions_started_equal_recount(database_url, made, zone)
                done += 1
            assert done > 0
    assert await rollups.cut_days_anew(maintenance) == 0
    assert_rollups_equal_recount(database_url, "America/St_Johns")

    set_time_zone(database_url, "UTC")
    async with opened(database_url, MAINTENANCE_ROLE) as other:
        both = await asyncio.gather(rollups.cut_days_anew(maintenance), rollups.cut_days_anew(other), rollups.add(maintenance))
    assert both[0] + both[1] == len(activity.tenants)
    assert_rollups_equal_recount(database_url, "UTC")


async def test_rollup_waits_for_another_run(database_url: str, activity: Activity, monkeypatch: pytest.MonkeyPatch):
    options = database._options(MAINTENANCE_ROLE).replace("statement_timeout=10s", "statement_timeout=400ms").replace("=5s", "=200ms")
    monkeypatch.setattr(database, "_options", lambda role: options)
    steps(activity, 5)
    async with opened(database_url, MAINTENANCE_ROLE) as impatient:
        with psycopg.connect(database_url) as holder:
            holder.execute("SELECT pg_advisory_xact_lock(7460001)")
            blocked = asyncio.create_task(rollups.add(impatient))
            await asyncio.sleep(1)
            assert not blocked.done()
        assert (await blocked)[0] > 0
        async with impatient.transaction() as db:
            await rollups.alone(db)
            shown = await db.execute(text("SELECT current_setting('statement_timeout'), current_setting('lock_timeout')"))
            assert shown.one() == ("400ms", "200ms")


@pytest.mark.parametrize("zone", ["Europe/Atlantis", "Foo+3", "", "UTC'; SELECT"])
async def test_unknown_time_zone_is_refused(database_url: str, activity: Activity, zone: str):
    with psycopg.connect(database_url) as db, pytest.raises(psycopg.DatabaseError):
        db.execute("UPDATE workspaces SET timezone = %s", [zone])


async def test_totals_equal_a_recount_and_only_rows_that_changed_are_written(database_url: str, maintenance: Database, activity: Activity):
    for count in (120, 30):
        steps(activity, count)
        await rollups.add(maintenance)
        await totals.fold(maintenance)
        _totals_are_right(database_url)
    rows = _versions(database_url)
    activity.db.execute("UPDATE sessions SET cost_usd = cost_usd + 1 WHERE id = %s", [_some(activity)])
    await rollups.add(maintenance)
    assert await totals.fold(maintenance) == {"agents": 1, "tools": 0}
    changed = {key for key, version in _versions(database_url).items() if rows[key] != version}
    assert changed == {("agents", activity.sessions[0][0].agent_id)}


async def test_two_concurrent_rollups_count_everything_once(
    database_url: str, maintenance: Database, activity: Activity, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(rollups, "_QUEUED", rollups._QUEUED.replace(str(rollups.BATCH), "7"))  # many small batches, alternating
    steps(activity, 120)
    other = Database(database_url, role=MAINTENANCE_ROLE, pool_size=2)
    await other.open()
    (one, _), (two, _) = await asyncio.gather(rollups.add(maintenance), rollups.add(other))
    folded = await asyncio.gather(totals.fold(maintenance), totals.fold(other))
    await other.close()

    assert min(one, two) > 0
    assert sum(copy["agents"] for copy in folded) == len({tenant.agent_id for tenant, _, _ in activity.sessions})
    assert_rollups_equal_recount(database_url, "UTC")
    _totals_are_right(database_url)


def _some(activity: Activity) -> UUID:
    return activity.sessions[0][1]


def _total(counted: tuple[Counted, ...], name: str) -> Any:
    return sum(one.get(name, 0) for one in counted[0].values())


def _versions(database_url: str) -> dict[tuple[str, UUID], str]:
    with psycopg.connect(database_url) as db:
        return {
            (table, row[0]): row[1]
            for table in ("agents", "tools", "agent_tools")
            for row in db.execute(f"SELECT id, xmin::text FROM {table}")
        }


def _totals_are_right(database_url: str) -> None:
    agents, _, tools = recount(database_url, lambda at: 0)
    with psycopg.connect(database_url, row_factory=psycopg.rows.dict_row) as db:
        for row in db.execute("SELECT * FROM agents"):
            sums = agents.get((row["id"], 0), {})
            assert row["total_sessions"] == sums.get("sessions_started", 0)
            assert row["total_messages"] == sums.get("cohort_messages", 0)
            assert row["total_tokens_used"] == sums.get("cohort_tokens", 0)
            assert row["total_cost"] == sums.get("cohort_cost_usd", 0)
            durations = sums.get("durations")
            assert row["average_session_duration"] == (durations and _rounded(sums.get("duration_s", 0), durations))
        for row in db.execute("SELECT * FROM tools"):
            of_tool = [sums for (_, _, tool), sums in tools.items() if tool == row["id"]]
            uses = sum(sums["calls"] - sums.get("denied_calls", 0) for sums in of_tool)
            won = sum(sums.get("succeeded_calls", 0) for sums in of_tool)
            assert (row["use_count"], row["success_rate"]) == (uses, round(100 * won / uses, 10) if uses else None)
        for row in db.execute("SELECT * FROM agent_tools"):
            sums = tools.get((row["agent_id"], 0, row["tool_id"]), {})
            assert row["use_count"] == sums.get("calls", 0) - sums.get("denied_calls", 0)
            assert (row["last_used_at"] is None) == (row["use_count"] == 0)
        shown = db.execute(
            "SELECT s.average_response_time AS shown, round(avg(floor(extract(epoch FROM t.settled_at - t.opened_at) * 1000)))::int AS true"
            " FROM sessions s LEFT JOIN turns t ON t.session_id = s.id AND t.status = 'done' GROUP BY s.id"
        ).fetchall()
        assert [row["shown"] for row in shown] == [row["true"] for row in shown]
        assert any(row["shown"] for row in shown)


def _rounded(total: Any, count: Any) -> int:
    """Round as the database does: a half away from zero."""
    return int((total / count).quantize(1, rounding="ROUND_HALF_UP"))
