"""Starting and stopping: warm, cold, cold during warm, stuck. Each with a worker process of its own and real signals."""

from __future__ import annotations

import signal
import uuid

import pytest
from celery import group

from tests.support.pool_site import PATIENCE_S, Site, Worker, hold, until


def unacknowledged(site: Site) -> int:
    with site.app.connection_for_read() as connection:
        return int(connection.default_channel.client.hlen("unacked"))


def test_warm_shutdown_waits_for_running_tasks_and_acknowledges_each_at_once(site: Site) -> None:
    with site.worker() as worker:
        first = hold(site, worker, worker.queue, 60)
        rest = uuid.uuid4().hex
        results = group(site.signature("holds", rest, queue=worker.queue) for _ in range(40)).apply_async()
        until(lambda: len(worker.ask("active")) == 100, "100 in flight")
        others = unacknowledged(site) - 100 if site.kind == "valkey" else 0
        worker.kill(signal.SIGTERM)
        until(lambda: "Warm shutdown" in worker.log.read_text(), "the signal's arrival")
        site.open(worker.queue)
        assert first.get(timeout=PATIENCE_S) == ["held"] * 60
        if site.kind == "valkey":  # while 40 tasks still run
            until(lambda: unacknowledged(site) - others == 40, "60 acknowledgements")
        late = site.send("plain", 1, queue=worker.queue)
        site.open(rest)

        assert worker.exit_status() == 0, worker.log.read_text()[-3000:]
    assert results.get(timeout=PATIENCE_S) == ["held"] * 40
    assert (late.state, site.waiting(worker.queue)) == ("PENDING", 1)
    hooks = site.notes.lrange(f"hooks:{worker.queue}", 0, -1)
    assert hooks == ["first opened", "second opened", "second closed", "first closed after 60"]


def test_cold_shutdown_returns_unfinished_messages(site: Site) -> None:
    gate = uuid.uuid4().hex
    with site.worker() as worker:
        held = hold(site, worker, gate, 100)
        worker.kill(signal.SIGQUIT)
        worker.exit_status()
    assert site.count(f"cancelled:{gate}") == 100
    until(lambda: site.waiting(worker.queue) == 100, "100 messages back in the queue")
    assert site.notes.lrange(f"hooks:{worker.queue}", -2, -1) == ["second closed", "first closed after 0"]

    site.open(gate)
    with site.worker(queue=worker.queue):
        assert held.get(timeout=PATIENCE_S) == ["held"] * 100


def test_cold_shutdown_during_a_warm_one(site: Site) -> None:
    gate = uuid.uuid4().hex
    with site.worker() as worker:
        hold(site, worker, gate, 20)
        worker.kill(signal.SIGTERM)
        until(lambda: "Warm shutdown" in worker.log.read_text(), "the first signal's arrival")
        worker.kill(signal.SIGQUIT)
        worker.exit_status()
    assert site.count(f"cancelled:{gate}") == 20
    until(lambda: site.waiting(worker.queue) == 20, "20 messages back in the queue")


def test_soft_shutdown_acknowledges_tasks_that_end_in_time_and_returns_the_others(site: Site) -> None:
    quick, slow = uuid.uuid4().hex, uuid.uuid4().hex
    with site.worker(REMAP_SIGTERM="SIGQUIT", POOL_TEST_SOFT_SHUTDOWN_S="3") as worker:
        ends = hold(site, worker, quick, 20)
        group(site.signature("holds", slow, queue=worker.queue) for _ in range(10)).apply_async()
        until(lambda: len(worker.ask("active")) == 30, "30 in flight")
        worker.kill(signal.SIGTERM)
        until(lambda: "Initiating Soft Shutdown" in worker.log.read_text(), "the signal's arrival")
        site.open(quick)
        worker.exit_status()
    assert site.count(f"ended:{quick}") == 20
    assert ends.get(timeout=PATIENCE_S) == ["held"] * 20
    until(lambda: site.waiting(worker.queue) == 10, "10 messages back in the queue")


def test_body_that_ignores_cancellation_ends_the_process_without_acknowledgements(site: Site) -> None:
    gate = uuid.uuid4().hex
    with site.worker(TURNLINE_POOL_STUCK_EXIT_S="1.5") as worker:
        hold(site, worker, gate, 5)
        stuck = site.send("swallows", 100, queue=worker.queue, time_limit=0.2)

        assert worker.exit_status() == 70
    assert 2 <= site.count(f"notes:{stuck.id}") < 100
    assert stuck.state == "FAILURE"
    assert "does not end" in worker.log.read_text()
    if site.kind == "rabbitmq":  # on Valkey they are redelivered only after the visibility timeout
        until(lambda: site.waiting(worker.queue) == 5, "five messages back in the queue")
    assert site.count(f"ended:{gate}") == site.count(f"cancelled:{gate}") == 0


def test_heartbeats_continue_during_a_long_warm_shutdown(site: Site) -> None:
    if site.kind == "valkey":
        pytest.skip("Valkey has no heartbeats")
    gate = uuid.uuid4().hex
    with site.worker(POOL_TEST_HEARTBEAT_S="1") as worker:
        held = hold(site, worker, gate, 3)
        worker.kill(signal.SIGTERM)
        until(lambda: "Warm shutdown" in worker.log.read_text(), "the signal's arrival")
        # Long enough for the broker to close a silent connection, which it does after two to three heartbeats.
        with pytest.raises(AssertionError, match="in vain"):
            until(lambda: site.waiting(worker.queue), "redelivered messages", 4.5)
        site.open(gate)
        assert worker.exit_status() == 0
    assert held.get(timeout=PATIENCE_S) == ["held"] * 3
    assert (site.waiting(worker.queue), site.count(f"begun:{gate}")) == (0, 3)


def test_queued_task_can_be_terminated_and_pool_can_grow(site: Site) -> None:
    gate = uuid.uuid4().hex
    with site.worker("-c", "1", "--prefetch-multiplier", "4") as worker:
        hold(site, worker, gate, 1)
        queued = [site.send("holds", gate, queue=worker.queue) for _ in range(3)]
        until(lambda: worker.pool()["queued"] == 3, "three in the pool's queue")
        worker.ask("revoke", task_id=queued[0].id, terminate=True)
        until(lambda: queued[0].state == "REVOKED", "the revocation of a queued task")
        worker.ask("pool_grow", n=1)
        until(lambda: site.count(f"begun:{gate}") == 2, "a second start")
        worker.ask("pool_shrink", n=1)
        pool = worker.pool()
        assert (pool["max-concurrency"], pool["running"], site.count(f"begun:{gate}")) == (1, 2, 2)
        site.open(gate)
        assert [result.get(timeout=PATIENCE_S) for result in queued[1:]] == ["held", "held"]
    assert queued[0].id not in site.notes.lrange(f"begun:{gate}", 0, -1)


def queue_three(site: Site, worker: Worker, gate: str) -> None:
    hold(site, worker, gate, 1)
    for _ in range(3):
        site.send("holds", gate, queue=worker.queue)
    until(lambda: worker.pool()["queued"] == 3, "three in the pool's queue")


def test_warm_shutdown_does_not_start_queued_tasks(site: Site) -> None:
    gate = uuid.uuid4().hex
    with site.worker("-c", "1", "--prefetch-multiplier", "4", "--loglevel", "DEBUG") as worker:
        queue_three(site, worker, gate)
        worker.kill(signal.SIGTERM)
        until(lambda: "Stopping Pool" in worker.log.read_text(), "the pool to be stopped")
        site.open(gate)
        assert worker.exit_status() == 0
    assert site.count(f"begun:{gate}") == site.count(f"ended:{gate}") == 1
    until(lambda: site.waiting(worker.queue) == 3, "3 messages back in the queue")


def test_cold_shutdown_returns_queued_messages(site: Site) -> None:
    gate = uuid.uuid4().hex
    with site.worker("-c", "1", "--prefetch-multiplier", "4") as worker:
        queue_three(site, worker, gate)
        worker.kill(signal.SIGQUIT)
        worker.exit_status()
    assert site.count(f"ended:{gate}") == 0
    until(lambda: site.waiting(worker.queue) == 4, "4 messages back in the queue")


def test_cold_shutdown_does_not_wait_for_a_body_that_ignores_cancellation(site: Site) -> None:
    with site.worker() as worker:
        stuck = site.send("swallows", 100, queue=worker.queue)
        until(lambda: len(worker.ask("active")) == 1, "the start")
        worker.kill(signal.SIGQUIT)
        worker.exit_status()
    assert site.count(f"notes:{stuck.id}") >= 1
    assert "their messages go back" in worker.log.read_text()
    until(lambda: site.waiting(worker.queue) == 1, "the message back in the queue")


def test_failing_start_hook_keeps_the_worker_from_starting(site: Site) -> None:
    with site.worker(ready=False, POOL_TEST_FAIL_START="1") as worker:
        assert worker.exit_status() != 0
    assert "the database is not available" in worker.log.read_text()


def test_invalid_setting_is_named(site: Site) -> None:
    with site.worker(ready=False, TURNLINE_POOL_STUCK_EXIT_S="soon") as worker:
        assert worker.exit_status() != 0
    assert "TURNLINE_POOL_STUCK_EXIT_S\n  Input should be a valid number" in worker.log.read_text()
