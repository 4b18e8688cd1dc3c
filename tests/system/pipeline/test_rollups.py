"""Rollups of real turns equal a recount; a job that is killed, or runs twice at the same time, counts everything once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from datetime import UTC, datetime

import psycopg
import pytest
from celery import Celery

from settings import Settings
from store.conversations import intake
from store.database import Database
from tasks.dispatcher import Dispatcher
from tests.support.activity import Activity
from tests.support.factories import tenant
from tests.support.fork_server import Child, fork_server
from tests.support.recount import quarter, recount, rolled_up
from tests.support.rollup_checks import assert_rollups_equal_recount, make_tenants
from tests.support.servers import Databases, process_env, until
from tests.support.stack import Stack


async def test_rollup_tasks_count_real_turns(stack: Stack, database: Database, dispatcher: Dispatcher):
    stack.worker()
    made = await tenant(database, sessions=3, tools=(stack.tool(),))
    for session_id in made.session_ids:
        accepted = await intake.accept(database, made.workspace_id, session_id, "Is order 41 paid?")
        assert accepted.turn_id is not None
        dispatcher.dispatch(accepted.turn_id)
    stack.drained()

    from tasks.celery_app import make_app

    celery: Celery = make_app(Settings(_env_file=None, DATABASE_URL=stack.database_url, CELERY_BROKER_URL=stack.broker_url))
    for task in ("analytics.roll_up", "usage.fold_totals"):
        celery.send_task(task)
    celery.close()
    until(lambda: stack.one("SELECT total_messages FROM agents WHERE id = %s", made.agent_id) == 6, 30)

    assert rolled_up(stack.database_url, "quarter") == recount(stack.database_url, quarter)
    assert stack.one("SELECT total_cost FROM agents") == stack.one("SELECT sum(cost_usd) FROM model_calls") > 0
    assert stack.rows("SELECT use_count, success_rate FROM tools") == [(3, 100)]
    assert stack.one("SELECT count(*) FROM sessions WHERE average_response_time > 0") == 3
    successful_runs = "SELECT count(*) FROM job_runs WHERE error IS NULL AND finished_at > started_at AND job ~ 'roll_up|fold_totals'"
    until(lambda: stack.one(successful_runs) == 2, 30)


@pytest.fixture
def url(databases: Databases) -> Iterator[str]:
    """Provide a database with activity of which only a part is rolled up."""
    made = databases.migrated()
    activity = Activity(made, asyncio.run(make_tenants(made, "UTC")), datetime(2026, 3, 6, tzinfo=UTC), 3, 3)
    for step in range(200):
        activity.step()
        if step == 50:
            assert roll_up(made).wait(60) == 0
    activity.close()
    yield made
    databases.drop(made)


def roll_up(url: str) -> Child:
    """Start `turnline jobs run usage.fold_totals`."""
    return fork_server().start(("-m", "cli.main", "jobs", "run", "usage.fold_totals", "--json"), process_env(DATABASE_URL=url))


def test_killed_rollup_batch_is_left_to_the_next_run(url: str):
    with psycopg.connect(url) as blocker:
        ((facts,),) = blocker.execute("SELECT count(*) FROM usage_facts").fetchall()
        blocker.execute("SELECT 1 FROM agent_rollups WHERE grain = 'total' FOR UPDATE")
        process = roll_up(url)
        until(lambda: _waits_for_lock(url), 30)  # the facts are deleted and the sums updated, and nothing is committed
        process.send_signal(signal.SIGKILL)
        process.wait()
    until(lambda: not _waits_for_lock(url), 30)

    with psycopg.connect(url) as db:
        assert db.execute("SELECT count(*) FROM usage_facts").fetchone() == (facts,)
    assert roll_up(url).wait(60) == 0
    assert_rollups_equal_recount(url, "UTC")
    with psycopg.connect(url) as db:
        assert db.execute("SELECT sum(total_cost) FROM agents").fetchone() == db.execute("SELECT sum(cost_usd) FROM sessions").fetchone()


def test_concurrent_rollups_count_everything_once(url: str):
    processes = [roll_up(url), roll_up(url)]

    assert [process.wait(60) for process in processes] == [0, 0]
    assert_rollups_equal_recount(url, "UTC")
    with psycopg.connect(url) as db:
        assert db.execute("SELECT count(*) FROM usage_facts").fetchone() == (0,)
        assert db.execute("SELECT sum(total_cost) FROM agents").fetchone() == db.execute("SELECT sum(cost_usd) FROM sessions").fetchone()


def _waits_for_lock(url: str) -> bool:
    with psycopg.connect(url) as db:
        row = db.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            " AND query LIKE '%DELETE FROM usage_facts%'"
        ).fetchone()
    return bool(row and row[0])
