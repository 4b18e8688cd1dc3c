"""The clean-up as processes: killed in the middle of its work, two at a time, by hand; holds; a workspace's own retention."""

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
    """Turnline the command line against the module's servers."""
    return partial(run_cli, directory=tmp_path, DATABASE_URL=database_url)


async def conversations(database_url: str, sessions: int, turns: int) -> Tenant:
    database = Database(database_url, pool_size=2)
    await database.open()
    made = await tenant(database, sessions=sessions)
    await database.close()
    filled(database_url, made, turns=turns)
    return made


# The job itself, with batches so small and so far between that there is a middle.
SLOW = """
import asyncio
from settings import get_settings
from store import retention
from tasks import jobs
from tasks.retention import CLEAN_UP
clean_up = retention.clean_up
retention.clean_up = lambda *given, **named: clean_up(*given, **(named | {"rows": 40, "rest": 5.0}))
asyncio.run(jobs.run(CLEAN_UP, settings=get_settings(), asked_by="operator"))
"""


async def test_killed_in_the_middle_it_goes_on_and_the_record_counts_each_row_once(
    turnline: Turnline, environment: dict[str, str], database_url: str
):
    """Three times, wherever that may be; then the next run finishes."""
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


async def test_two_processes_and_an_operator_at_once(turnline: Turnline, environment: dict[str, str], database_url: str):
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


async def test_by_hand_it_says_what_it_would_do_and_what_it_did(turnline: Turnline, database_url: str):
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
    assert "is not held" in free.stdout
    assert json.loads(rest.stdout)["counts"]["sessions_deleted"] == 1
    assert "There is no session" in turnline("hold", str(made.session_ids[1])).stderr


async def test_a_workspace_may_keep_less_than_its_agents(turnline: Turnline, database_url: str):
    made = await conversations(database_url, 1, 1)
    workspace = str(made.workspace_id)

    assert "as long as their agents say" in turnline("workspace", "retention", workspace).stdout
    assert "for 7 days" in turnline("workspace", "retention", workspace, "7").stdout
    assert fetch_value(database_url, "SELECT data_retention_days FROM workspaces") == 7
    assert "as long as their agents say" in turnline("workspace", "retention", workspace, "--none").stdout
    assert fetch_value(database_url, "SELECT data_retention_days FROM workspaces") is None
    assert turnline("workspace", "retention", workspace, "0").returncode == 2
    assert "There is no workspace" in turnline("workspace", "retention", str(made.agent_id), "7").stderr


async def test_sessions_are_given_up_by_the_job(turnline: Turnline, database_url: str):
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
