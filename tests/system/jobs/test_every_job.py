"""Every job on real data: an hour late, run again, killed in its middle, two runs at once. Jobs run as processes.

A trigger makes a statement in the middle of the job wait for a lock that the test holds.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
import redis

from store.database import Database
from tasks.jobs import all_jobs
from tests.support.fork_server import Child, fork_server
from tests.support.servers import SECRET_KEY, Databases, process_env, until
from tests.system.jobs.job_fixtures import JOB_CASES, JobCase, World

BLOCKING_TRIGGER = """
CREATE FUNCTION block() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN IF %(which)s THEN PERFORM pg_advisory_xact_lock_shared(4242); END IF; RETURN NEW; END $$;
CREATE TRIGGER block BEFORE %(on)s ON %(table)s FOR EACH ROW EXECUTE FUNCTION block()
"""
BLOCKED = """SELECT count(*) FROM pg_locks
WHERE locktype = 'advisory' AND objid = 4242 AND NOT granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
AT_WORK = "SELECT count(*) FROM job_runs WHERE job = %s"

each_job = pytest.mark.parametrize("case", JOB_CASES, ids=[case.job for case in JOB_CASES])


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of an HTTP server that answers every request."""

    class Answerer(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(204)
            self.end_headers()

        do_GET = do_OPTIONS = do_HEAD

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answerer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
async def world(databases: Databases, broker_url: str, address: str, case: JobCase) -> AsyncIterator[World]:
    """The case's data, for a job that is an hour late."""

    def dispatched_turns() -> set[str]:
        with redis.Redis.from_url(broker_url) as broker:
            sent = [json.loads(one)["headers"]["id"] for one in broker.lrange("turns", 0, -1)]
        return {one.split(":")[1] for one in sent}

    url = databases.migrated()
    database = Database(url, pool_size=4)
    await database.open()
    here = World(database, url, address, dispatched_turns)
    await case.make(here)
    await database.close()
    yield here
    databases.drop(url)


@pytest.fixture
def environment(world: World, broker_url: str, case: JobCase) -> dict[str, str]:
    settings = {"DATABASE_URL": world.database_url, "CELERY_BROKER_URL": broker_url, "TURNLINE_SECRET_KEYS": SECRET_KEY}
    return process_env(**(settings | case.env))


@pytest.fixture
def blocked_trigger(world: World, case: JobCase) -> Iterator[contextlib.ExitStack]:
    """Block every run in the case's middle until this is closed."""
    world.execute(BLOCKING_TRIGGER % {"which": case.which(world), "on": case.on, "table": case.table})
    with contextlib.ExitStack() as blocking:
        db = blocking.enter_context(psycopg.connect(world.database_url, autocommit=True))
        db.execute("SELECT pg_advisory_lock(4242)")
        yield blocking


def started(case: JobCase, environment: dict[str, str]) -> Child:
    return fork_server().start(("-m", "cli.main", "jobs", "run", case.job, "--json"), environment)


def ended(process: Child) -> dict[str, int]:
    """Return the counts that the run reports."""
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    counts: dict[str, int] = json.loads(out.strip().splitlines()[-1])["counts"]
    return counts


def is_blocked(world: World) -> bool:
    return bool(world.value(BLOCKED))


def test_every_job_has_a_case():
    assert sorted(case.job for case in JOB_CASES) == sorted(all_jobs())


@each_job
def test_overdue_job_catches_up_and_a_second_run_changes_nothing(case: JobCase, world: World, environment: dict[str, str]):
    assert case.seen(world) != case.due(world)

    did = ended(started(case, environment))
    first = case.seen(world)
    again = ended(started(case, environment))

    assert first == case.due(world)
    assert case.seen(world) == first
    name, count = case.counted
    assert did[name] == count
    assert again.get(name, 0) == (count if case.job == "usage.audit" else 0), "only an audit repeats its work"


@each_job
def test_killed_job_is_completed_by_the_next_run(
    case: JobCase, world: World, environment: dict[str, str], blocked_trigger: contextlib.ExitStack
):
    before = case.seen(world)
    process = started(case, environment)
    until(lambda: is_blocked(world) and (case.seen(world) != before or not case.begun))
    halfway = case.seen(world)
    process.kill()
    process.communicate()
    blocked_trigger.close()
    until(lambda: not is_blocked(world))

    assert halfway != case.due(world)
    assert (halfway != before) == case.begun
    world.execute(case.later)
    ended(started(case, environment))

    assert case.seen(world) == case.due(world)
    outcomes = "SELECT array_agg(finished_at IS NOT NULL ORDER BY id) FROM job_runs WHERE job = %s"
    assert world.value(outcomes, case.job) == [False, True]


@each_job
def test_concurrent_runs_of_a_job_do_the_work_once(
    case: JobCase, world: World, environment: dict[str, str], blocked_trigger: contextlib.ExitStack
):
    two = [started(case, environment) for _ in range(2)]
    until(lambda: world.value(AT_WORK, case.job) == 2 and is_blocked(world))
    blocked_trigger.close()
    did = [ended(process) for process in two]

    assert case.seen(world) == case.due(world)
    name, count = case.counted
    in_all = sum(counts.get(name, 0) for counts in did)
    assert in_all == (2 * count if case.job == "usage.audit" else count)
