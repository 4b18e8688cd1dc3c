"""`turnline audit`, the daily task and doctor's line, on a database whose books are right or are made wrong."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from beat_schedule import SCHEDULE
from cli.audit import duration, run
from cli.doctor import examine
from settings import Settings, get_settings
from store.database import Database
from store.operations.audit import BEGINNING
from tasks.celery_app import make_app
from tests.support.cli import Turnline
from tests.support.cli import turnline as run_cli
from tests.support.db import fetch
from tests.support.factories import Tenant, tenant
from tests.support.servers import SECRET_KEY, process_env, until
from tests.support.stack import Process


@pytest.fixture
def database_url(fresh_database_url: str) -> str:
    """Give each test a database of its own."""
    return fresh_database_url


@pytest.fixture
async def made(database_url: str) -> Tenant:
    database = Database(database_url, pool_size=2)
    await database.open()
    found = await tenant(database, sessions=3)
    await database.close()
    return found


@pytest.fixture
def turnline(tmp_path: Path, database_url: str) -> Turnline:
    """Turnline the command line against the module's servers."""
    return partial(run_cli, directory=tmp_path, DATABASE_URL=database_url)


def break_counters(database_url: str, *session_ids: UUID) -> None:
    fetch(database_url, "UPDATE sessions SET message_count = 7 WHERE id = ANY (%s)", list(session_ids))


def test_right_books(turnline: Turnline, made: Tenant):
    done = turnline("audit")
    assert done.returncode == 0, done.stderr
    assert "3 sessions and 0 older ones" in done.stdout
    assert done.stdout.endswith("No violations.\n")


def test_wrong_books_are_said_with_ids_and_meaning_and_kept(turnline: Turnline, database_url: str, made: Tenant):
    break_counters(database_url, *made.session_ids)
    for arguments in (["audit", "--all", "--limit", "2"], ["audit", "--last", "--limit", "2"]):
        done = turnline(*arguments)
        assert done.returncode == 1
        assert "counters that differ from a recount: 3   (invariant 6)" in done.stdout
        assert "The session's counts of events and messages are not what its log comes to." in done.stdout
        assert sum(str(session_id) in done.stdout for session_id in made.session_ids) == 2
        assert "… and 1 more" in done.stdout
        assert done.stdout.endswith("3 violations.\n")

    found = json.loads(turnline("audit", "--last", "--json").stdout)
    assert found["violations"]["counters that differ from a recount"]["count"] == 3
    assert {one["session_id"] for one in found["violations"]["counters that differ from a recount"]["ids"]} == {
        str(session_id) for session_id in made.session_ids
    }
    assert found["complete"] is True


def test_what_could_not_be_done_exits_2(turnline: Turnline):
    for arguments, env, words in (
        (["audit", "--last"], {}, "There has been no audit yet"),
        (["audit"], {"DATABASE_URL": "postgresql://me:hunter2@127.0.0.1:1/x"}, "The database 127.0.0.1:1/x does not answer"),
        (["audit"], {"DATABASE_URL": "mysql://me:hunter2@db/x"}, "The setting DATABASE_URL cannot be used"),
        (["audit", "--since", "soon"], {}, "'soon' is no length of time"),
        (["audit", "--all", "--last"], {}, "Give one of"),
    ):
        done = turnline(*arguments, **env)
        assert (done.returncode, words in done.stderr) == (2, True), done.stderr
        assert "hunter2" not in done.stderr + done.stdout
        assert "Traceback" not in done.stderr


def test_no_time_at_all(turnline: Turnline, made: Tenant):
    done = turnline("audit", "--max-seconds", "0")
    assert done.returncode == 0
    assert "0 sessions" in done.stdout
    assert "Its time ran out" in done.stdout


@pytest.mark.parametrize(("said", "seconds"), [("90s", 90), ("15m", 900), ("2h", 7200), ("7d", 604800), ("1w", 604800)])
def test_lengths_of_time(said: str, seconds: int):
    assert duration(said).total_seconds() == seconds


def test_one_killed_in_the_middle_shows_as_unfinished_and_stands_in_nobodys_way(
    turnline: Turnline, database_url: str, made: Tenant, tmp_path: Path
):
    fetch(
        database_url,
        'INSERT INTO events (workspace_id, session_id, "offset", kind, source, content) VALUES (%s, %s, 0, %s, %s, %s)',
        *(made.workspace_id, made.session_id, "note", "customer", "{}"),
    )
    fetch(
        database_url,
        "CREATE FUNCTION dawdle() RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$ BEGIN PERFORM pg_sleep(60); RETURN true; END $$;"
        "CREATE POLICY dawdle ON events AS RESTRICTIVE FOR SELECT TO turnline_maintenance USING (dawdle())",
    )
    env = process_env(DATABASE_URL=database_url, TURNLINE_HOME=str(tmp_path))
    doomed = Process(tmp_path / "log", env, "-m", "cli.main", "audit")
    until(lambda: fetch(database_url, "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"))
    doomed.popen.send_signal(signal.SIGKILL)
    doomed.popen.wait()
    fetch(
        database_url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
    )
    fetch(database_url, "DROP POLICY dawdle ON events; DELETE FROM events")

    last = turnline("audit", "--last")
    assert (last.returncode, "has not finished" in last.stdout) == (2, True)
    assert turnline("audit").returncode == 0
    assert [finished is not None for (finished,) in fetch(database_url, "SELECT finished_at FROM audits ORDER BY id")] == [False, True]


def test_doctor_says_how_the_books_stand(database_url: str, made: Tenant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in process_env(DATABASE_URL=database_url, TURNLINE_HOME=str(tmp_path)).items():
        monkeypatch.setenv(name, value)

    def said() -> tuple[bool, str]:
        return next((found.ok, found.text) for found in examine({}) if "audit" in found.text)

    def audited(**options: Any) -> None:
        run(get_settings(), since=options.get("since"), max_s=60, show_progress=False)

    get_settings.cache_clear()
    assert said() == (True, "There has been no audit yet; the scheduler makes one every day.")
    fetch(
        database_url,
        "INSERT INTO turns (workspace_id, session_id, opened_at_offset, opened_at) VALUES (%s, %s, 0, now() - interval '3 days')",
        *(made.workspace_id, made.session_id),
    )
    overdue = "; the scheduler makes one every day. Do beat and the maintenance worker run?"
    assert said() == (False, f"There has been no audit{overdue}")
    fetch(database_url, "DELETE FROM turns")

    audited()
    assert said() == (True, "The last audit, 0 minutes ago, found no violations.")
    fetch(database_url, "UPDATE audits SET started_at = now() - interval '73 hours'")
    assert said() == (True, "The last audit, 3 days ago, found no violations."), "a database without turns needs none"
    fetch(
        database_url,
        "INSERT INTO turns (workspace_id, session_id, opened_at_offset) VALUES (%s, %s, 0)",
        made.workspace_id,
        made.session_id,
    )
    assert said() == (False, f"The last audit was 3 days ago{overdue}")
    break_counters(database_url, made.session_id)
    audited(since=BEGINNING)
    assert said() == (False, "The last audit, 0 minutes ago, found violations (1). `turnline audit --last` shows them.")
    get_settings.cache_clear()


@pytest.fixture
def maintenance_worker(database_url: str, broker_url: str, tmp_path: Path) -> Iterator[Process]:
    """The worker for scheduled jobs, as `turnline worker --maintenance` starts it."""
    env = process_env(DATABASE_URL=database_url, CELERY_BROKER_URL=broker_url, TURNLINE_SECRET_KEYS=SECRET_KEY, TURNLINE_HOME=str(tmp_path))
    worker = Process(tmp_path / "worker.log", env, "-m", "cli.main", "worker", "--maintenance")
    until(lambda: worker.logged("ready."), 30)
    yield worker
    worker.stop()


def test_the_scheduled_task_keeps_its_result_once_a_day(database_url: str, broker_url: str, made: Tenant, maintenance_worker: Process):
    break_counters(database_url, made.session_id)
    app = make_app(Settings(_env_file=None, CELERY_BROKER_URL=broker_url))
    entry: dict[str, Any] = SCHEDULE["audit"]
    for _ in range(3):  # schedulers
        app.send_task(entry["task"], kwargs=entry["kwargs"], queue=entry["options"]["queue"])
    until(lambda: maintenance_worker.logged("violations; `turnline audit --last` shows them"), 20)
    app.send_task(entry["task"])  # somebody wants one now
    until(lambda: len(fetch(database_url, "SELECT 1 FROM audits WHERE finished_at IS NOT NULL")) >= 2, 20)
    app.close()

    assert '"violations": {"counters that differ from a recount": 1}' in maintenance_worker.log.read_text()
    # The threads of the worker may begin two of the three at once; a third one sees that it is done.
    assert 2 <= len(fetch(database_url, "SELECT 1 FROM audits")) <= 3
