"""The clean-up as a process: killed midway, two at a time, by hand; legal holds; a workspace's own retention; abandoned sessions."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from store.database import Database
from tests.support.factories import Tenant, tenant
from tests.support.invariants import violations
from tests.support.past_sessions import filled, left
from tests.support.servers import Databases, process_env, until

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def database_url(databases: Databases) -> Iterator[str]:
    """A database for each test."""
    url = databases.migrated()
    yield url
    databases.drop(url)


@pytest.fixture
def environment(tmp_path: Path, database_url: str) -> dict[str, str]:
    return process_env(TURNLINE_HOME=str(tmp_path / "home"), DATABASE_URL=database_url)


@pytest.fixture
def turnline(tmp_path: Path, environment: dict[str, str]) -> Run:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cli.main", *arguments]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)

    return run


async def conversations(database_url: str, sessions: int, turns: int) -> Tenant:
    database = Database(database_url, pool_size=2)
    await database.open()
    made = await tenant(database, sessions=sessions)
    await database.close()
    filled(database_url, made, turns=turns)
    return made


def ask(url: str, query: str) -> Any:
    with psycopg.connect(url) as db:
        row = db.execute(query).fetchone()
    return row and row[0]


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


async def test_killed_clean_up_is_continued_and_each_row_is_counted_once(turnline: Run, environment: dict[str, str], database_url: str):
    """It is killed three times; then the next run finishes."""
    made = await conversations(database_url, 6, 300)

    def fewer_than(events: float) -> bool:
        return bool(ask(database_url, "SELECT count(*) FROM events") < events)

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
    assert ask(database_url, totals) == "{6,6,7200,1800,1800,1800}"
    assert ask(database_url, "SELECT spent FROM budgets") == 3


async def test_two_processes_and_an_operator_share_the_work(turnline: Run, environment: dict[str, str], database_url: str):
    made = await conversations(database_url, 40, 20)
    processes = [await asyncio.create_subprocess_exec(sys.executable, "-c", SLOW, env=environment) for _ in range(2)]
    await asyncio.to_thread(until, lambda: ask(database_url, "SELECT count(*) FROM deletions") > 0, 30)

    done = await asyncio.to_thread(turnline, "jobs", "run", "retention.clean_up")

    assert done.returncode == 0, done.stderr
    assert [await process.wait() for process in processes] == [0, 0]
    assert left(database_url, made.session_ids) == {}
    assert ask(database_url, "SELECT array[count(*), count(finished_at), sum(events)]::text FROM deletions") == "{40,40,3200}"
    assert ask(database_url, "SELECT sum((counts->>'events_deleted')::integer) FROM job_runs WHERE job = 'retention.clean_up'") == 3200


async def test_dry_run_and_run_print_the_same_counts_and_skip_held_sessions(turnline: Run, database_url: str):
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


async def test_workspace_may_have_a_shorter_retention_than_its_agents(turnline: Run, database_url: str):
    made = await conversations(database_url, 1, 1)
    workspace = str(made.workspace_id)

    assert "as long as their agents say" in turnline("workspace", "retention", workspace).stdout
    assert "for 7 days" in turnline("workspace", "retention", workspace, "7").stdout
    assert ask(database_url, "SELECT data_retention_days FROM workspaces") == 7
    assert "as long as their agents say" in turnline("workspace", "retention", workspace, "--none").stdout
    assert ask(database_url, "SELECT data_retention_days FROM workspaces") is None
    assert turnline("workspace", "retention", workspace, "0").returncode == 2
    assert "There is no workspace" in turnline("workspace", "retention", str(made.agent_id), "7").stderr


async def test_idle_sessions_are_abandoned(turnline: Run, database_url: str):
    made = await conversations(database_url, 3, 1)
    with psycopg.connect(database_url) as db:
        db.execute("UPDATE sessions SET status = 'active', ended_at = NULL")

    would = turnline("jobs", "run", "sessions.abandon_idle", "--dry-run")
    did = turnline("jobs", "run", "sessions.abandon_idle")
    again = turnline("jobs", "run", "sessions.abandon_idle")

    assert "would have done: 3 sessions abandoned" in would.stdout, would.stderr
    assert "done: 3 sessions abandoned" in did.stdout, did.stderr
    assert "nothing to do" in again.stdout
    assert len(made.session_ids) == ask(database_url, "SELECT count(*) FROM sessions WHERE status = 'abandoned'")
