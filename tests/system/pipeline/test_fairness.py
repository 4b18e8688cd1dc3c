"""One workspace floods the system: the broker holds few of its dispatch messages, others do not wait, and all messages are answered."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

import failpoints
from store.conversations import intake, sweep
from store.database import MAINTENANCE_ROLE, Database
from tasks.dispatcher import Dispatcher
from tests.support.factories import Tenant, tenant
from tests.support.invariants import violations
from tests.support.servers import EmbeddedValkey, until
from tests.support.stack import Stack, running

LIMIT = 3  # turns in flight per workspace


@pytest.fixture
def stack(database_url: str, tmp_path: Path) -> Iterator[Stack]:
    """Provide a stack with a low in-flight limit and no worker."""
    with (
        EmbeddedValkey(None) as broker,
        running(Stack(database_url, broker.url, tmp_path, TURNLINE_WORKSPACE_IN_FLIGHT=str(LIMIT))) as made,
    ):
        yield made


async def flood(database: Database, dispatcher: Dispatcher, count: int, *, sessions: int) -> Tenant:
    """Create a workspace, send `count` messages to its sessions in rotation, and dispatch turns as the API does."""
    made = await tenant(database, sessions=sessions, strategy="enqueue")
    for number in range(count):
        session_id = made.session_ids[number % sessions]
        accepted = await intake.accept(database, made.workspace_id, session_id, f"Question {number}", in_flight_limit=LIMIT)
        if accepted.to_dispatch is not None:
            dispatcher.dispatch(accepted.to_dispatch)
    return made


def admitted(stack: Stack, made: Tenant) -> int:
    """Return the number of admitted turns of the workspace that are queued or running."""
    count: int = stack.one(
        "SELECT count(*) FROM turns WHERE workspace_id = %s AND admission = 'admitted' AND status IN ('queued', 'running')",
        made.workspace_id,
    )
    return count


def dispatch_messages(stack: Stack) -> int:
    """Return the number of dispatch messages in the broker."""
    with redis.Redis.from_url(stack.broker_url) as client:
        return int(client.llen("turns"))


def answered(stack: Stack, made: Tenant) -> int:
    count: int = stack.one("SELECT count(*) FROM turns WHERE workspace_id = %s AND status = 'done'", made.workspace_id)
    return count


def all_answered_within_limit(stack: Stack, made: Tenant, count: int) -> bool:
    """Return true once all `count` turns are answered. Fail if more turns than the limit are admitted."""
    assert admitted(stack, made) <= LIMIT
    return answered(stack, made) == count


async def test_flood_does_not_delay_another_workspaces_message(stack: Stack, database: Database, dispatcher: Dispatcher):
    loud = await flood(database, dispatcher, 24, sessions=12)
    until(lambda: dispatch_messages(stack) == LIMIT)
    assert admitted(stack, loud) == LIMIT
    maintenance = Database(stack.database_url, role=MAINTENANCE_ROLE, pool_size=1)
    await maintenance.open()
    try:
        assert len(await sweep.due(maintenance, stale_s=-1.0, in_flight_limit=LIMIT)) == LIMIT, "the sweep exceeds the in-flight limit"
    finally:
        await maintenance.close()
    quiet = await flood(database, dispatcher, 1, sessions=1)
    until(lambda: dispatch_messages(stack) == LIMIT + 1)

    stack.worker(concurrency=4)
    stack.beat()
    until(lambda: all_answered_within_limit(stack, loud, 24), 60)

    stack.drained()
    assert answered(stack, quiet) == 1
    after = stack.one(
        "SELECT count(*) FROM turns WHERE workspace_id = %s AND settled_at > (SELECT settled_at FROM turns WHERE workspace_id = %s)",
        loud.workspace_id,
        quiet.workspace_id,
    )
    assert after >= 12
    assert violations(stack.database_url) == {}


async def test_sweep_dispatches_a_turn_that_a_killed_worker_admitted(stack: Stack, database: Database, dispatcher: Dispatcher):
    crash = {failpoints.AT: "turn.final_commit:2", failpoints.CONSENT: failpoints.CONSENTED}
    stack.env |= crash
    doomed = stack.worker(concurrency=4)
    for name in crash:
        del stack.env[name]
    loud = await flood(database, dispatcher, 12, sessions=6)
    assert doomed.popen.wait(60) == -signal.SIGKILL
    assert 1 <= answered(stack, loud) < 12
    lost = stack.one(
        "SELECT count(*) FROM turns WHERE workspace_id = %s AND status = 'queued' AND admission = 'admitted' AND dispatched_at IS NULL",
        loud.workspace_id,
    )
    assert lost, "the worker was killed too late: the turns that it admitted were dispatched"

    stack.worker(concurrency=4)
    stack.beat()
    until(lambda: all_answered_within_limit(stack, loud, 12), 60)

    stack.drained()
    assert violations(stack.database_url) == {}
