"""`turnline audit`, the daily audit task and the audit check of `turnline doctor`, on consistent and corrupted databases."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from beat_schedule import SCHEDULE
from cli.audit import run_audit
from cli.doctor import run_checks
from cli.options import parse_duration
from settings import Settings, get_settings
from store.operations.audit import BEGINNING
from tasks.celery_app import make_app
from tests.support.cli import COMMAND, Turnline
from tests.support.cli import turnline as run_turnline
from tests.support.db import fetch, opened
from tests.support.factories import Tenant, tenant
from tests.support.servers import SECRET_KEY, process_env, until
from tests.support.stack import Process


@pytest.fixture
def database_url(fresh_database_url: str) -> str:
    """A database of each test's own."""
    return fresh_database_url


@pytest.fixture
async def workspace(database_url: str) -> Tenant:
    async with opened(database_url) as database:
        return await tenant(database, sessions=3)


@pytest.fixture
def turnline(database_url: str, tmp_path: Path) -> Turnline:
    return partial(run_turnline, directory=tmp_path, DATABASE_URL=database_url)


def break_counters(database_url: str, *session_ids: UUID) -> None:
    fetch(database_url, "UPDATE sessions SET message_count = 7 WHERE id = ANY (%s)", list(session_ids))


def test_consistent_database_has_no_violations(turnline: Turnline, workspace: Tenant):
    done = turnline("audit")
    assert done.returncode == 0, done.stderr
    assert "3 sessions and 0 older ones" in done.stdout
    assert done.stdout.endswith("No violations.\n")


def test_violations_are_reported_with_ids_and_stored(turnline: Turnline, database_url: str, workspace: Tenant):
    break_counters(database_url, *workspace.session_ids)
    for arguments in (["audit", "--all", "--limit", "2"], ["audit", "--last", "--limit", "2"]):
        done = turnline(*arguments)
        assert done.returncode == 1
        assert "counters that differ from a recount: 3   (invariant 6)" in done.stdout
        assert "The session's counts of events and messages differ from its log." in done.stdout
        assert sum(str(session_id) in done.stdout for session_id in workspace.session_ids) == 2
        assert "… and 1 more" in done.stdout
        assert done.stdout.endswith("3 violations.\n")

    found = json.loads(turnline("audit", "--last", "--json").stdout)
    assert found["violations"]["counters that differ from a recount"]["count"] == 3
    assert {one["session_id"] for one in found["violations"]["counters that differ from a recount"]["ids"]} == {
        str(session_id) for session_id in workspace.session_ids
    }
    assert found["complete"] is True


def test_audit_that_cannot_run_exits_with_2(turnline: Turnline):
    for arguments, env, message in (
        (["audit", "--last"], {}, "There has been no audit yet"),
        (["audit"], {"DATABASE_URL": "postgresql://me:hunter2@127.0.0.1:1/x"}, "The database 127.0.0.1:1/x does not answer"),
        (["audit"], {"DATABASE_URL": "mysql://me:hunter2@db/x"}, "The setting DATABASE_URL cannot be used"),
        (["audit", "--since", "soon"], {}, "'soon' is not a duration"),
        (["audit", "--all", "--last"], {}, "Give only one of"),
    ):
        done = turnline(*arguments, **env)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
        assert "hunter2" not in done.stderr + done.stdout
        assert "Traceback" not in done.stderr


def test_audit_without_time_is_incomplete(turnline: Turnline, workspace: Tenant):
    done = turnline("audit", "--max-seconds", "0")
    assert done.returncode == 0
    assert "0 sessions" in done.stdout
    assert "It ran out of time" in done.stdout


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("15m", 900), ("2h", 7200), ("7d", 604800), ("1w", 604800)])
def test_durations(text: str, seconds: int):
    assert parse_duration(text).total_seconds() == seconds


def test_killed_audit_is_unfinished_and_does_not_block_the_next(turnline: Turnline, database_url: str, workspace: Tenant, tmp_path: Path):
    fetch(
        database_url,
        'INSERT INTO events (workspace_id, session_id, "offset", kind, source, content) VALUES (%s, %s, 0, %s, %s, %s)',
        *(workspace.workspace_id, workspace.session_id, "note", "customer", "{}"),
    )
    fetch(
        database_url,
        "CREATE FUNCTION sleep_a_minute() RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$ BEGIN PERFORM pg_sleep(60); RETURN true; END $$;"
        "CREATE POLICY sleep_a_minute ON events AS RESTRICTIVE FOR SELECT TO turnline_maintenance USING (sleep_a_minute())",
    )
    env = process_env(DATABASE_URL=database_url, TURNLINE_HOME=str(tmp_path))
    sleeping = "FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
    killed = Process(tmp_path / "log", env, *COMMAND[1:], "audit")
    until(lambda: fetch(database_url, f"SELECT 1 {sleeping}"))
    killed.popen.send_signal(signal.SIGKILL)
    killed.popen.wait()
    fetch(database_url, f"SELECT pg_terminate_backend(pid) {sleeping}")
    fetch(database_url, "DROP POLICY sleep_a_minute ON events; DELETE FROM events")

    last = turnline("audit", "--last")
    assert (last.returncode, "has not finished" in last.stdout) == (2, True)
    assert turnline("audit").returncode == 0
    assert [finished is not None for (finished,) in fetch(database_url, "SELECT finished_at FROM audits ORDER BY id")] == [False, True]


def test_doctor_reports_the_last_audit(database_url: str, workspace: Tenant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in process_env(DATABASE_URL=database_url, TURNLINE_HOME=str(tmp_path)).items():
        monkeypatch.setenv(name, value)

    def audit_finding() -> tuple[bool, str]:
        return next((found.ok, found.text) for found in run_checks({}) if "audit" in found.text)

    def audit(since: datetime | None = None) -> None:
        run_audit(get_settings(), since=since, max_s=60, show_progress=False)

    get_settings.cache_clear()
    assert audit_finding() == (True, "There has been no audit yet; the scheduler runs one every day.")
    fetch(
        database_url,
        "INSERT INTO turns (workspace_id, session_id, opened_at_offset, opened_at) VALUES (%s, %s, 0, now() - interval '3 days')",
        *(workspace.workspace_id, workspace.session_id),
    )
    overdue = "; the scheduler runs one every day. Do beat and the maintenance worker run?"
    assert audit_finding() == (False, f"There has been no audit{overdue}")
    fetch(database_url, "DELETE FROM turns")

    audit()
    assert audit_finding() == (True, "The last audit, 0 minutes ago, found no violations.")
    fetch(database_url, "UPDATE audits SET started_at = now() - interval '73 hours'")
    assert audit_finding() == (True, "The last audit, 3 days ago, found no violations."), "a database without turns needs no audit"
    fetch(
        database_url,
        "INSERT INTO turns (workspace_id, session_id, opened_at_offset) VALUES (%s, %s, 0)",
        workspace.workspace_id,
        workspace.session_id,
    )
    assert audit_finding() == (False, f"The last audit was 3 days ago{overdue}")
    break_counters(database_url, workspace.session_id)
    audit(since=BEGINNING)
    assert audit_finding() == (False, "The last audit, 0 minutes ago, found violations (1). `turnline audit --last` shows them.")
    get_settings.cache_clear()


@pytest.fixture
def maintenance_worker(database_url: str, broker_url: str, tmp_path: Path) -> Iterator[Process]:
    """A running `turnline worker --maintenance`."""
    env = process_env(DATABASE_URL=database_url, CELERY_BROKER_URL=broker_url, TURNLINE_SECRET_KEYS=SECRET_KEY, TURNLINE_HOME=str(tmp_path))
    worker = Process(tmp_path / "worker.log", env, *COMMAND[1:], "worker", "--maintenance")
    until(lambda: worker.logged("ready."), 30)
    yield worker
    worker.stop()


def test_scheduled_audit_is_stored_once_a_day(database_url: str, broker_url: str, workspace: Tenant, maintenance_worker: Process):
    break_counters(database_url, workspace.session_id)
    app = make_app(Settings(_env_file=None, CELERY_BROKER_URL=broker_url))
    entry: dict[str, Any] = SCHEDULE["audit"]
    for _ in range(3):  # as three schedulers would
        app.send_task(entry["task"], kwargs=entry["kwargs"], queue=entry["options"]["queue"])
    until(lambda: maintenance_worker.logged("violations; `turnline audit --last` shows them"), 20)
    app.send_task(entry["task"])  # an unscheduled one always runs
    until(lambda: len(fetch(database_url, "SELECT 1 FROM audits WHERE finished_at IS NOT NULL")) >= 2, 20)
    app.close()

    assert '"violations": {"counters that differ from a recount": 1}' in maintenance_worker.log.read_text()
    # The worker may start two of the three at the same time; the third finds a finished audit.
    assert 2 <= len(fetch(database_url, "SELECT 1 FROM audits")) <= 3
