"""One workspace's flood: its rings never fill the broker, another's message passes it, and all of it is answered in the end."""

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

WINDOW = 3


@pytest.fixture
def stack(database_url: str, tmp_path: Path) -> Iterator[Stack]:
    """A stack with a small window, and no worker yet."""
    with (
        EmbeddedValkey(None) as broker,
        running(Stack(database_url, broker.url, tmp_path, TURNLINE_WORKSPACE_IN_FLIGHT=str(WINDOW))) as made,
    ):
        yield made


async def flood(database: Database, dispatcher: Dispatcher, count: int, *, sessions: int) -> Tenant:
    """A workspace that has sent `count` messages, round its sessions, and rung as the front door does."""
    made = await tenant(database, sessions=sessions, strategy="enqueue")
    for number in range(count):
        session_id = made.session_ids[number % sessions]
        accepted = await intake.accept(database, made.workspace_id, session_id, f"Question {number}", in_flight_limit=WINDOW)
        if accepted.to_dispatch is not None:
            dispatcher.dispatch(accepted.to_dispatch)
    return made


def granted(stack: Stack, made: Tenant) -> int:
    """How many turns of the workspace may be rung or running."""
    count: int = stack.one(
        "SELECT count(*) FROM turns WHERE workspace_id = %s AND admission = 'admitted' AND status IN ('queued', 'running')",
        made.workspace_id,
    )
    return count


def rings(stack: Stack) -> int:
    """How many rings wait at the broker."""
    with redis.Redis.from_url(stack.broker_url) as client:
        return int(client.llen("turns"))


def answered(stack: Stack, made: Tenant) -> int:
    count: int = stack.one("SELECT count(*) FROM turns WHERE workspace_id = %s AND status = 'done'", made.workspace_id)
    return count


def within_its_window(stack: Stack, made: Tenant, count: int) -> bool:
    """Whether all `count` turns are answered; fails where more than a window of them are granted on the way."""
    assert granted(stack, made) <= WINDOW
    return answered(stack, made) == count


async def test_another_workspaces_message_is_not_delayed_by_a_flood(stack: Stack, database: Database, dispatcher: Dispatcher):
    loud = await flood(database, dispatcher, 24, sessions=12)
    until(lambda: rings(stack) == WINDOW)
    assert granted(stack, loud) == WINDOW
    maintenance = Database(stack.database_url, role=MAINTENANCE_ROLE, pool_size=1)
    await maintenance.open()
    try:
        assert len(await sweep.due(maintenance, stale_s=-1.0, in_flight_limit=WINDOW)) == WINDOW, "the sweep keeps to the window"
    finally:
        await maintenance.close()
    quiet = await flood(database, dispatcher, 1, sessions=1)
    until(lambda: rings(stack) == WINDOW + 1)

    stack.worker(concurrency=4)
    stack.beat()
    until(lambda: within_its_window(stack, loud, 24), 60)

    stack.drained()
    assert answered(stack, quiet) == 1
    after = stack.one(
        "SELECT count(*) FROM turns WHERE workspace_id = %s AND settled_at > (SELECT settled_at FROM turns WHERE workspace_id = %s)",
        loud.workspace_id,
        quiet.workspace_id,
    )
    assert after >= 12
    assert violations(stack.database_url) == {}


async def test_admission_lost_with_its_worker_is_made_up_by_the_sweep(stack: Stack, database: Database, dispatcher: Dispatcher):
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
    assert lost, "the worker was killed too late: what it handed on was rung"

    stack.worker(concurrency=4)
    stack.beat()
    until(lambda: within_its_window(stack, loud, 12), 60)

    stack.drained()
    assert violations(stack.database_url) == {}
