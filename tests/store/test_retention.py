"""Sessions past their retention are deleted with all their rows; those with a legal hold or open work, and other tenants', are kept."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from engine.errors import NotFound
from store.conversations import intake
from store.database import Database
from store.operations import audit
from store.retention import cleanup
from tests.support.db import fetch
from tests.support.factories import Tenant, tenant
from tests.support.invariants import violations
from tests.support.past_sessions import filled, left


@pytest.fixture
def database_url(fresh_database_url: str) -> str:
    """Give each test a database of its own."""
    return fresh_database_url


async def test_only_sessions_past_retention_are_deleted(database: Database, maintenance: Database, database_url: str):
    made = await tenant(database, sessions=5)
    other = await tenant(database, sessions=2, data_retention_days=365)
    old, young, on_hold, open_work, active = made.session_ids
    filled(database_url, made, [old, on_hold, open_work])
    filled(database_url, made, [young], days_ago=29)
    filled(database_url, made, [active], status="active")
    filled(database_url, other)
    fetch(database_url, "UPDATE sessions SET held_at = now(), held_by = 'Olga' WHERE id = %s", on_hold)
    fetch(database_url, "INSERT INTO turns (workspace_id, session_id, opened_at_offset) VALUES (%s, %s, 8)", made.workspace_id, open_work)
    before = left(database_url, [young, on_hold, open_work, active, *other.session_ids])

    assert await cleanup.due(maintenance) == (1, 8)
    done = await cleanup.clean_up(maintenance, rest=0)
    again = await cleanup.clean_up(maintenance, rest=0)

    assert done.counts == {"sessions": 1, "turns": 2, "events": 8, "model_calls": 2, "tool_calls": 2, "approvals": 2}
    assert not any(again.counts.values())
    assert left(database_url, [old]) == {}
    assert left(database_url, [young, on_hold, open_work, active, *other.session_ids]) == before
    record = fetch(database_url, "SELECT session_id, workspace_id, agent_id, reason, finished_at >= begun_at, events, turns FROM deletions")
    assert record == [(old, made.workspace_id, made.agent_id, "retention", True, 8, 2)]


@pytest.mark.parametrize(
    ("agent", "workspace", "kept"), [(30, None, True), (10, None, False), (30, 10, False), (10, 365, False), (30, 20, True)]
)
async def test_shorter_retention_counts(
    database: Database, maintenance: Database, database_url: str, agent: int, workspace: int | None, kept: bool
):
    made = await tenant(database, data_retention_days=agent)
    filled(database_url, made, days_ago=15)
    fetch(database_url, "UPDATE workspaces SET data_retention_days = %s", workspace)

    await cleanup.clean_up(maintenance, rest=0)

    assert bool(left(database_url, made.session_ids)) is kept


async def test_retention_counts_from_last_activity(database: Database, maintenance: Database, database_url: str):
    made = await tenant(database)
    filled(database_url, made, days_ago=60)
    fetch(database_url, "UPDATE sessions SET last_activity_at = now() - interval '29 days'")

    assert not any((await cleanup.clean_up(maintenance, rest=0)).counts.values())


async def test_reservation_of_deleted_unknown_call_counts_as_spent(database: Database, maintenance: Database, database_url: str):
    made = await tenant(database, sessions=3)
    filled(database_url, made)

    await cleanup.clean_up(maintenance, rest=0)

    assert fetch(database_url, "SELECT scope, reserved, spent FROM budgets") == [("agent", 0, 1.5)]
    assert violations(database_url) == {}


async def test_deleting_keeps_analytics(database: Database, maintenance: Database, database_url: str):
    made = await tenant(database)
    filled(database_url, made)
    facts = "SELECT kind, count(*), sum(input_tokens), sum(messages) FROM usage_facts GROUP BY 1 ORDER BY 1"
    before = fetch(database_url, facts)
    fetch(database_url, "UPDATE sessions SET counted = false")
    assert not any((await cleanup.clean_up(maintenance, rest=0)).counts.values()), "not deleted before it is counted"

    fetch(database_url, "UPDATE sessions SET counted = true")
    await cleanup.clean_up(maintenance, rest=0)

    assert left(database_url, made.session_ids) == {}
    assert fetch(database_url, facts) == before != []


async def test_partly_deleted_session_is_hidden_and_consistent(database: Database, maintenance: Database, database_url: str):
    """The cleanup is stopped after every single batch of a long session and of short ones."""
    made = await tenant(database, sessions=4)
    filled(database_url, made, made.session_ids[:1], turns=30, status="abandoned")
    filled(database_url, made, made.session_ids[1:], turns=2, status="abandoned")
    assert (await maintenance.call("SELECT mark_expired(10) AS n"))["n"] == 4
    total, batches = 0, 0

    while (row := await maintenance.call("SELECT * FROM delete_marked(16, NULL)"))["o_busy"]:
        assert row["o_events"] <= 16
        assert row["o_turns"] <= 4
        total, batches = total + row["o_events"], batches + 1
        assert violations(database_url) == {}
        assert (await audit.run(maintenance)).findings == {}
        async with database.transaction(made.workspace_id) as db:
            assert (await db.exec_driver_sql("SELECT count(*) FROM sessions")).scalar_one() == 0
        with pytest.raises(NotFound):
            await intake.accept(database, made.workspace_id, made.session_ids[0], "Hello?")

    assert total == 4 * 36
    assert batches > 15
    assert left(database_url, made.session_ids) == {}


async def test_two_concurrent_cleanups_share_the_work(database: Database, maintenance: Database, database_url: str):
    made = await tenant(database, sessions=60)
    filled(database_url, made)

    first, second = await asyncio.gather(*(cleanup.clean_up(maintenance, rows=24, rest=0.1) for _ in range(2)))

    assert first.counts["sessions"] + second.counts["sessions"] == 60
    assert first.counts["events"] + second.counts["events"] == 480
    assert fetch(database_url, "SELECT count(*), sum(events), count(finished_at) FROM deletions") == [(60, 480, 60)]
    assert left(database_url, made.session_ids) == {}


async def test_run_stops_at_time_limit_and_next_continues(database: Database, maintenance: Database, database_url: str):
    made = await tenant(database)
    filled(database_url, made, turns=100)

    done = await cleanup.clean_up(maintenance, max_s=0.001, rows=20, rest=1000)

    assert not done.complete
    assert left(database_url, made.session_ids)
    assert (await cleanup.clean_up(maintenance, rest=0)).complete
    assert left(database_url, made.session_ids) == {}


async def test_old_deletion_records_are_deleted(database: Database, maintenance: Database, database_url: str):
    made = await tenant(database, sessions=2)
    filled(database_url, made)
    await cleanup.clean_up(maintenance, rest=0)
    fetch(database_url, "UPDATE deletions SET begun_at = begun_at - interval '401 days' WHERE session_id = %s", made.session_id)

    await cleanup.clean_up(maintenance, rest=0)

    assert fetch(database_url, "SELECT session_id FROM deletions") == [(made.session_ids[1],)]


@pytest.mark.parametrize("table", ["sessions", "turns", "events", "model_calls", "tool_calls", "approvals", "budget_holds", "budgets"])
async def test_maintenance_role_deletes_only_marked_sessions_and_reads_no_text(
    database: Database, maintenance: Database, database_url: str, table: str
):
    made: Tenant = await tenant(database)
    filled(database_url, made)
    words = {"sessions": "title", "turns": "error_detail", "events": "content", "model_calls": "provider_request_id"}
    words |= {"tool_calls": "arguments", "approvals": "reason"}

    assert await maintenance.rows(f"DELETE FROM {table} RETURNING 1 AS one") == []
    if table in words:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await maintenance.rows(f"SELECT {words[table]} FROM {table}")
