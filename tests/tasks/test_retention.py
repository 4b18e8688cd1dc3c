"""The clean-up as a process: killed midway, two at a time, by hand; legal holds; a workspace's own retention; abandoned sessions."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from functools import partial
from pathlib import Path

import psycopg
import pytest

from store.database import Database
from tests.support.cli import Turnline
from tests.support.cli import turnline as run_cli
from tests.support.db import fetch_value
from tests.support.factories import Tenant, tenant
from tests.support.invariants import violations
from tests.support.past_sessions import filled, left
from tests.support.servers import process_env, until


@pytest.fixture
def database_url(fresh_database_url: str) -> str:
    """Give each test a database of its own."""
    return fresh_database_url


@pytest.fixture
def environment(tmp_path: Path, database_url: str) -> dict[str, str]:
    return process_env(TURNLINE_HOME=str(tmp_path / "home"), DATABASE_URL=database_url)


@pytest.fixture
def turnline(tmp_path: Path, database_url: str) -> Turnline:
    """Runs `turnline` on the test's database."""
    return partial(run_cli, directory=tmp_path, DATABASE_URL=database_url)


async def conversations(database_url: str, sessions: int, turns: int) -> Tenant:
    database = Database(database_url, pool_size=2)
    await database.open()
    made = await tenant(database, sessions=sessions)
    await database.close()
    filled(database_url, made, turns=turns)
    return made


# The job with batches so small and so far apart that it can be killed midway.
SLOW = """
import asyncio
from settings import get_settings
from store.retention import cleanup
from tasks import jobs
from tasks.retention import clean_up
delete = cleanup.clean_up
cleanup.clean_up = lambda *args, **kwargs: delete(*args, **(kwargs | {"rows": 40, "rest": 5.0}))
asyncio.run(jobs.run(clean_up, settings=get_settings(), asked_by="operator"))
"""


async def test_killed_clean_up_is_continued_and_each_row_is_counted_once(
    turnline: Turnline, environment: dict[str, str], database_url: str
):
    """It is killed three times; then the next run finishes."""
    made = await conversations(database_url, 6, 300)

    def fewer_than(events: float) -> bool:
        return bool(fetch_value(database_url, "SELECT count(*) FROM events") < events)

    for part in (0.8, 0.6, 0.4):
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", SLOW, env=environment)
        await asyncio.to_thread(until, partial(fewer_than, part * 7200), 60)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        assert violations(database_url) == {}
    assert left(database_url, made.session_ids)["events"] > 0

    done = turnline("jobs", "run", "retention.clean_up", "--json")

    assert done.returncode == 0, done.stderr
    assert left(database_url, made.session_ids) == {}
    totals = "SELECT array[count(*), count(finished_at), sum(events), sum(turns), sum(model_calls), sum(approvals)]::text FROM deletions"
    assert fetch_value(database_url, totals) == "{6,6,7200,1800,1800,1800}"
    assert fetch_value(database_url, "SELECT spent FROM budgets") == 3


async def test_two_processes_and_an_operator_share_the_work(turnline: Turnline, environment: dict[str, str], database_url: str):
    made = await conversations(database_url, 40, 20)
    processes = [await asyncio.create_subprocess_exec(sys.executable, "-c", SLOW, env=environment) for _ in range(2)]
    await asyncio.to_thread(until, lambda: fetch_value(database_url, "SELECT count(*) FROM deletions") > 0, 30)

    done = await asyncio.to_thread(turnline, "jobs", "run", "retention.clean_up")

    assert done.returncode == 0, done.stderr
    assert [await process.wait() for process in processes] == [0, 0]
    assert left(database_url, made.session_ids) == {}
    assert fetch_value(database_url, "SELECT array[count(*), count(finished_at), sum(events)]::text FROM deletions") == "{40,40,3200}"
    assert (
        fetch_value(database_url, "SELECT sum((counts->>'events_deleted')::integer) FROM job_runs WHERE job = 'retention.clean_up'") == 3200
    )


async def test_dry_run_and_run_print_the_same_counts_and_skip_held_sessions(turnline: Turnline, database_url: str):
    made = await conversations(database_url, 3, 2)
    held = turnline("hold", str(made.session_ids[0]), "--reason", "A dispute.")
    assert "by operator" in held.stdout, held.stderr
    assert held.stdout.strip().endswith(": A dispute.")

    would = turnline("jobs", "run", "retention.clean_up", "--dry-run")
    did = turnline("jobs", "run", "retention.clean_up")
    free = turnline("unhold", str(made.session_ids[0]))
    rest = turnline("jobs", "run", "retention.clean_up", "--json")

    assert "would have done: 2 sessions deleted, 16 events deleted." in would.stdout, would.stderr
    assert "done: 2 sessions deleted, 4 turns deleted, 16 events deleted" in did.stdout, did.stderr
    assert "is not on legal hold" in free.stdout
    assert json.loads(rest.stdout)["counts"]["sessions_deleted"] == 1
    assert "There is no session" in turnline("hold", str(made.session_ids[1])).stderr


async def test_workspace_may_have_a_shorter_retention_than_its_agents(turnline: Turnline, database_url: str):
    made = await conversations(database_url, 1, 1)
    workspace = str(made.workspace_id)

    assert "as long as their agents say" in turnline("workspace", "retention", workspace).stdout
    assert "for 7 days" in turnline("workspace", "retention", workspace, "7").stdout
    assert fetch_value(database_url, "SELECT data_retention_days FROM workspaces") == 7
    assert "as long as their agents say" in turnline("workspace", "retention", workspace, "--none").stdout
    assert fetch_value(database_url, "SELECT data_retention_days FROM workspaces") is None
    assert turnline("workspace", "retention", workspace, "0").returncode == 2
    assert "There is no workspace" in turnline("workspace", "retention", str(made.agent_id), "7").stderr


async def test_idle_sessions_are_abandoned(turnline: Turnline, database_url: str):
    made = await conversations(database_url, 3, 1)
    with psycopg.connect(database_url) as db:
        db.execute("UPDATE sessions SET status = 'active', ended_at = NULL")

    would = turnline("jobs", "run", "sessions.abandon_idle", "--dry-run")
    did = turnline("jobs", "run", "sessions.abandon_idle")
    again = turnline("jobs", "run", "sessions.abandon_idle")

    assert "would have done: 3 sessions abandoned" in would.stdout, would.stderr
    assert "done: 3 sessions abandoned" in did.stdout, did.stderr
    assert "nothing to do" in again.stdout
    assert len(made.session_ids) == fetch_value(database_url, "SELECT count(*) FROM sessions WHERE status = 'abandoned'")
