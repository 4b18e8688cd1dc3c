"""An audit ends in time and records how far it got; the next one continues from there."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from store.database import Database
from store.operations import audit
from tests.support.db import fetch
from tests.support.factories import Tenant, tenant

WRONG = "counters that differ from a recount"


@pytest.fixture
def database_url(fresh_database_url: str) -> str:
    """Give each test a database of its own."""
    return fresh_database_url


@pytest.fixture
async def made(database_url: str) -> Tenant:
    """A tenant with eleven sessions that are a day old; the first of them has a wrong counter."""
    database = Database(database_url, pool_size=2)
    await database.open()
    found = await tenant(database, sessions=11)
    await database.close()
    fetch(
        database_url,
        "UPDATE sessions SET last_activity_at = now() - interval '1 day', message_count = (id = %s)::integer",
        found.session_id,
    )
    return found


async def test_run_stops_at_time_limit_and_next_continues(
    database_url: str, maintenance: Database, made: Tenant, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(audit, "BATCH_SESSIONS", 2)
    monkeypatch.setattr(audit, "PAGE", 5)  # so that a page ends in the middle of a batch

    first = await audit.run(maintenance, max_s=5, on_progress=lambda done, total: time.sleep(5 if done >= 4 else 0))

    assert (first.complete, first.checked["sessions"], first.findings) == (False, 4, {})
    assert first.left == audit.Walk(audit.BEGINNING, sorted(made.session_ids)[-4])

    # Meanwhile a session that was checked becomes active again, and one that was not.
    fetch(
        database_url,
        "UPDATE sessions SET last_activity_at = now(), message_count = 9 WHERE id = ANY (%s)",
        [made.session_ids[-1], made.session_ids[3]],
    )
    reported: list[tuple[int, int]] = []
    second = await audit.run(maintenance, on_progress=lambda *progress: reported.append(progress))

    assert second.complete
    assert second.checked["sessions"] == 2 + 7, "first the sessions active since, then the unchecked ones"
    assert reported[-1] == (9, 9)
    expected = {made.session_ids[0], made.session_ids[3], made.session_ids[-1]}
    assert {session for session, _ in second.findings[WRONG].ids} == expected


async def test_older_sessions_are_checked_in_slices(maintenance: Database, made: Tenant, monkeypatch: pytest.MonkeyPatch):
    await audit.run(maintenance)
    monkeypatch.setattr(audit, "OVERLAP", timedelta(0))
    monkeypatch.setattr(audit, "OLDER_SESSIONS", 4)

    slices = [await audit.run(maintenance) for _ in range(4)]

    assert [report.checked["sessions"] for report in slices] == [0, 0, 0, 0]
    assert [report.checked["older_sessions"] for report in slices] == [4, 4, 3, 4], "and from the first again"
    assert [WRONG in report.findings for report in slices] == [True, False, False, True]


async def test_audit_since_a_time_does_not_affect_next_plain_audit(database_url: str, maintenance: Database, made: Tenant):
    recent = await audit.run(maintenance, since=datetime.now(UTC) - timedelta(hours=1))
    everything = await audit.run(maintenance, since=audit.BEGINNING)
    plain = await audit.run(maintenance)

    assert [report.checked["sessions"] for report in (recent, everything, plain)] == [0, 11, 11]


async def test_old_sessions_with_open_work_are_checked(database_url: str, maintenance: Database, made: Tenant):
    await audit.run(maintenance)
    fetch(
        database_url,
        "INSERT INTO turns (workspace_id, session_id, opened_at_offset, opened_at) VALUES (%s, %s, 0, now() - interval '1 day')",
        made.workspace_id,
        made.session_ids[4],
    )
    report = await audit.run(maintenance, since=datetime.now(UTC))

    assert report.checked["sessions"] == 1
    assert [session for session, _ in report.findings["unclaimed turns"].ids] == [made.session_ids[4]]


async def test_slow_session_is_skipped_and_listed(database_url: str, maintenance: Database, made: Tenant, monkeypatch: pytest.MonkeyPatch):
    """Its batch is checked in halves, so that the other sessions of the batch are checked all the same."""
    slow = made.session_ids[6]
    fetch(
        database_url,
        'INSERT INTO events (workspace_id, session_id, "offset", kind, source, content) VALUES (%s, %s, 0, %s, %s, %s)',
        *(made.workspace_id, slow, "customer_message", "customer", "{}"),
    )
    fetch(
        database_url,
        "CREATE FUNCTION dawdle() RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$ BEGIN PERFORM pg_sleep(60); RETURN true; END $$;"
        "CREATE POLICY dawdle ON events AS RESTRICTIVE FOR SELECT TO turnline_maintenance USING (dawdle())",
    )
    monkeypatch.setattr(audit, "QUESTION_S", 1)

    report = await audit.run(maintenance)

    assert report.unasked == [slow]
    assert report.complete
    assert [session for session, _ in report.findings[WRONG].ids] == [made.session_id]
    (row,) = await audit.latest(maintenance)
    assert row["checked"]["unasked"] == [str(slow)]


async def test_failed_audit_stores_error_in_its_row(database_url: str, maintenance: Database, made: Tenant):
    fetch(database_url, "REVOKE SELECT (cost_usd) ON model_calls FROM turnline_maintenance")
    with pytest.raises(Exception, match="permission denied"):
        await audit.run(maintenance)

    (row,) = await audit.latest(maintenance)
    assert row["error"] == "ProgrammingError: some checks could not be run"
    assert row["finished_at"] is not None
    fetch(database_url, "GRANT SELECT (cost_usd) ON model_calls TO turnline_maintenance")
    assert (await audit.run(maintenance)).since == audit.BEGINNING, "the next audit ignores a failed one"


async def test_two_concurrent_audits_succeed(maintenance: Database, made: Tenant):
    reports = await asyncio.gather(audit.run(maintenance), audit.run(maintenance))

    assert [report.violations for report in reports] == [1, 1]
    assert len(await audit.latest(maintenance, 5)) == 2


@pytest.mark.parametrize("column", ["events.content", "events.metadata", "model_calls.provider_request_id", "tool_calls.arguments",
                                    "tool_calls.error", "turns.error_detail", "sessions.title", "tools.parameters"])  # fmt: skip
async def test_maintenance_role_cannot_read_messages(maintenance: Database, column: str):
    table, name = column.split(".")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        await maintenance.rows(f"SELECT {name} FROM {table}")


async def test_the_applications_role_has_no_right_to_the_operators_tables(database_url: str):
    app = Database(database_url, pool_size=1)
    await app.open()
    for statement in ("SELECT 1 FROM audits", "SELECT 1 FROM workers", "DELETE FROM audits"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await app.rows(statement)
    await app.close()
