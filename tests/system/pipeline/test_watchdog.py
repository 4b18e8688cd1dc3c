"""The watchdog ends a hung worker, and another finishes its turns. It leaves idle, full and disconnected workers alone."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from celery import Celery

from settings import Settings
from store.conversations import intake
from store.database import Database
from tasks.celery_app import make_app
from tests.support.factories import Tenant, tenant
from tests.support.invariants import violations
from tests.support.servers import Databases, until
from tests.support.stack import Process, Stack, running
from tests.system.faults.rig import Valkey
from worker.watchdog import EXIT_CODE

WATCHDOG_S = "3"
TURNS = 12
DONE = "SELECT count(*) FROM turns WHERE status = 'done'"


@pytest.fixture
def broker(scratch: Path, tmp_path: Path) -> Iterator[Valkey]:
    """Provide a broker that keeps its data when it is killed."""
    with Valkey(scratch / tmp_path.name) as made:
        yield made


@pytest.fixture
def stack(databases: Databases, broker: Valkey, tmp_path: Path) -> Iterator[Stack]:
    url = databases.migrated()
    with running(Stack(url, broker.url, tmp_path, TURNLINE_WATCHDOG_S=WATCHDOG_S)) as made:
        yield made
    databases.drop(url)


@pytest.fixture
async def database(stack: Stack) -> AsyncIterator[Database]:
    made = Database(stack.database_url, pool_size=4)
    await made.open()
    yield made
    await made.close()


def quiet_worker(stack: Stack) -> Process:
    """Start a worker for four concurrent turns, without heartbeats: if its broker restarts while it is busy, it never consumes again."""
    command = ("-m", "celery", "-A", "tests.support.quiet_app", "worker", "--pool", "custom", "-c", "4", "-n", "quiet@test", "-Q", "turns")
    worker = stack.start(*command, "--without-mingle", "--without-gossip", "--without-heartbeat")
    until(lambda: worker.logged("ready."), 30)
    return worker


def doctor_findings(stack: Stack) -> list[str]:
    """Return the lines of `turnline doctor` that report a problem."""
    return [line for line in stack.turnline("doctor").stdout.splitlines() if line.startswith("WRONG")]


def make_producer(stack: Stack) -> Celery:
    """Return a Celery app that sends tasks to the stack's workers."""
    return make_app(Settings(_env_file=None, DATABASE_URL=stack.database_url, CELERY_BROKER_URL=stack.broker_url))


async def post(database: Database, text: str, count: int) -> Tenant:
    """Create a tenant with `count` sessions and a message in each. Only the sweep dispatches their turns."""
    made = await tenant(database, sessions=count)
    for session_id in made.session_ids:
        await intake.accept(database, made.workspace_id, session_id, text)
    return made


async def start_hung_worker(stack: Stack, database: Database, broker: Valkey, *, down_s: float = 2) -> Process:
    """Start a quiet worker, kill its broker while it runs four turns, and start the broker again after `down_s` seconds."""
    stack.worker(queues="maintenance", concurrency=2)
    stack.beat()
    worker = quiet_worker(stack)
    await post(database, "Hello [[latency 700]]", TURNS)
    until(lambda: stack.one("SELECT count(*) FROM turns WHERE status = 'running' AND claimed_at > now() - interval '0.3 s'") == 4, 30)
    broker.kill()
    time.sleep(down_s)
    assert worker.logged("ready."), "the watchdog ended the worker while the broker was down"
    until(lambda: worker.log.read_text().count("Couldn't ack") >= 4)  # the worker keeps counting these four as unacknowledged
    broker.start()
    assert stack.one(DONE) < TURNS, "all turns were done before the broker was killed, so the run proves nothing"
    return worker


async def test_hung_worker_without_a_watchdog_stays_hung(stack: Stack, database: Database, broker: Valkey):
    stack.env |= {"TURNLINE_WATCHDOG_S": "0"}
    worker = await start_hung_worker(stack, database, broker)
    assert worker.logged("The watchdog is off")
    time.sleep(3)
    before = stack.one(DONE)
    time.sleep(3 * float(WATCHDOG_S))

    assert worker.popen.poll() is None
    assert stack.one(DONE) == before < TURNS
    worker.kill()


async def test_watchdog_ends_a_hung_worker_and_another_finishes(stack: Stack, database: Database, broker: Valkey):
    worker = await start_hung_worker(stack, database, broker, down_s=3 * float(WATCHDOG_S))
    until(lambda: worker.popen.poll() is not None, 60)

    assert worker.popen.returncode == EXIT_CODE
    assert worker.log.read_text().count("No progress for") == 1
    assert stack.rows("SELECT name, stalls, stalled_at > now() - interval '1 minute' FROM workers WHERE stalls > 0") == [
        ("quiet@test", 1, True)
    ]
    assert any(
        "The worker quiet@test stalled and was ended by its watchdog (once, 0 minutes ago)" in line for line in doctor_findings(stack)
    )
    quiet_worker(stack)
    stack.drained(60)
    assert stack.one(DONE) == TURNS
    assert violations(stack.database_url) == {}


async def test_watchdog_ends_a_worker_whose_event_loop_is_blocked(stack: Stack, database: Database):
    worker = quiet_worker(stack)
    app = make_producer(stack)
    app.send_task("tests.block", args=(120,), queue="turns")
    app.close()
    until(lambda: stack.one("SELECT seen_at IS NOT NULL AND running = 1 FROM workers"), 20)
    await post(database, "Hello", 1)
    until(lambda: worker.popen.poll() is not None, 60)

    assert worker.popen.returncode == EXIT_CODE
    assert "No progress for" in worker.log.read_text()


async def test_watchdog_leaves_idle_full_and_disconnected_workers_alone(stack: Stack, database: Database, broker: Valkey):
    """No sweep runs here, so that a turn that is not dispatched stays unclaimed."""
    worker = stack.worker(concurrency=2, queues="turns")
    await post(database, "Never dispatched", 1)
    longer_s = 2 * float(WATCHDOG_S)

    time.sleep(longer_s)
    assert worker.logged("ready."), "ended while idle"
    assert stack.one("SELECT now() - progress_at < interval '4 s' FROM workers")

    app = make_producer(stack)
    await post(database, f"[[latency {int(longer_s * 1500)}]]", 2)
    for turn_id, text in stack.rows(
        "SELECT t.id, e.content->>'text' FROM turns t JOIN events e ON e.turn_id = t.id WHERE t.status = 'queued'"
    ):
        if "latency" in text:
            app.send_task("turns.advance", args=(str(turn_id),), queue="turns")
    app.close()
    until(lambda: stack.one("SELECT count(*) FROM turns WHERE status = 'running'") == 2)
    time.sleep(longer_s)
    assert worker.logged("ready."), "ended while full of long turns"
    assert stack.one("SELECT count(*) FROM turns WHERE status = 'running'") == 2
    until(lambda: stack.one(DONE) == 2, 30)

    broker.kill()
    time.sleep(longer_s)
    assert worker.logged("ready."), "ended without a broker"
    broker.start()
    time.sleep(longer_s)
    assert worker.logged("ready."), "ended after the broker came back"
    assert stack.one("SELECT count(*) FROM workers WHERE stalls > 0") == 0
