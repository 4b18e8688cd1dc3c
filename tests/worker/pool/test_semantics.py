"""Celery's guarantees for tasks hold in this pool, on both brokers. One worker serves all of these tests."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from billiard.exceptions import WorkerLostError
from celery import chain, chord, group
from celery.exceptions import Reject, SoftTimeLimitExceeded, TaskRevokedError, TimeLimitExceeded

from tests.support.pool_site import PATIENCE_S, Site, Worker, until


def get(result: Any) -> Any:
    return result.get(timeout=PATIENCE_S)


def notes(site: Site, result: Any) -> list[str]:
    return list(site.notes.lrange(f"notes:{result.id}", 0, -1))  # type: ignore[arg-type]


@contextmanager
def events(site: Site) -> Iterator[list[tuple[str, str]]]:
    """Collect (task id, kind of event) while the block runs."""
    collected: list[tuple[str, str]] = []
    stop = threading.Event()

    def collect() -> None:
        with site.app.connection_for_read() as connection:
            receiver = site.app.events.Receiver(
                connection, handlers={"*": lambda event: collected.append((event.get("uuid", ""), event["type"]))}
            )
            with receiver.consumer_context(wakeup=False) as (own, _, _):
                while not stop.is_set():
                    try:
                        own.drain_events(timeout=0.1)
                    except TimeoutError:
                        continue

    thread = threading.Thread(target=collect)
    thread.start()

    def subscribed() -> bool:
        with site.app.events.default_dispatcher() as dispatcher:
            dispatcher.send("pool-probe")
        return any(kind == "pool-probe" for _, kind in collected)

    try:
        until(subscribed, "the subscription to events")
        yield collected
    finally:
        stop.set()
        thread.join()


def events_of(collected: list[tuple[str, str]], result: Any) -> list[str]:
    """Return the worker's events about one task, in order. The sender's own event may arrive at any time."""
    return [kind for task_id, kind in collected if task_id == result.id and kind != "task-sent"]


def test_interleaved_bodies_have_their_own_request(site: Site, worker: Worker) -> None:
    results = group(site.signature("identity", n, queue=worker.queue) for n in range(400)).apply_async()

    assert sum(get(results)) == 0


def test_automatic_and_explicit_retries(site: Site, worker: Worker) -> None:
    automatic, own = site.send("flaky", queue=worker.queue), site.send("retries_itself", queue=worker.queue)

    assert get(automatic) == get(own) == 2


def test_traceback_includes_the_innermost_await(site: Site, worker: Worker) -> None:
    result = site.send("fails_deep", queue=worker.queue)

    with pytest.raises(LookupError, match="at the bottom"):
        get(result)
    assert result.traceback.count("in fails_deep") == 4


def test_soft_limit_cancels_body_and_children(site: Site, worker: Worker) -> None:
    result = site.send("sleeps", 600, queue=worker.queue, soft_time_limit=0.3)

    with pytest.raises(SoftTimeLimitExceeded):
        get(result)
    assert sorted(notes(site, result)) == ["body ended", "child cancelled"]


def test_body_may_return_a_result_at_the_soft_limit(site: Site, worker: Worker) -> None:
    assert get(site.send("ends_early", 600, queue=worker.queue, soft_time_limit=0.3)) == "cut short"


def test_hard_limit_fails_the_task_and_cancels_the_body(site: Site, worker: Worker) -> None:
    with events(site) as collected:
        result = site.send("sleeps", 600, queue=worker.queue, time_limit=0.3)
        with pytest.raises(TimeLimitExceeded):
            get(result)
        until(lambda: sorted(notes(site, result)) == ["body ended", "child cancelled"], "the body's end")
        until(lambda: "task-failed" in events_of(collected, result), "the event")
    assert events_of(collected, result) == ["task-received", "task-started", "task-failed"]


def test_result_after_the_hard_limit_is_ignored(site: Site, worker: Worker) -> None:
    follow_up = site.signature("plain", 1, queue=worker.queue, immutable=True)
    follow_up.freeze()
    with events(site) as collected:
        result = site.send("swallows", 2, queue=worker.queue, time_limit=0.3, link=follow_up)
        with pytest.raises(TimeLimitExceeded):
            get(result)
        until(lambda: notes(site, result) == ["swallowed", "swallowed", "returned"], "two cancellations and the late return")
        until(lambda: worker.pool()["given-up"] == 0, "the pool to see the late return")
        get(site.send("plain", 1, queue=worker.queue))  # anything that the late return caused was sent before this
    assert result.state == "FAILURE"
    assert "task-succeeded" not in events_of(collected, result)
    assert follow_up.id not in {task_id for task_id, _ in collected}


def test_revoke_with_terminate_cancels_a_running_body(site: Site, worker: Worker) -> None:
    gate = uuid.uuid4().hex
    with events(site) as collected:
        result = site.send("holds", gate, queue=worker.queue)
        until(lambda: site.count(f"begun:{gate}"), "the start")
        worker.ask("revoke", task_id=result.id, terminate=True)
        with pytest.raises(TaskRevokedError):
            get(result)
        until(lambda: site.count(f"cancelled:{gate}"), "the cancellation")
        until(lambda: "task-revoked" in events_of(collected, result), "the event")
        get(site.send("plain", 1, queue=worker.queue))
    assert events_of(collected, result) == ["task-received", "task-started", "task-revoked"]
    assert site.count(f"begun:{gate}") == 1


def test_chain_group_and_chord(site: Site, worker: Worker) -> None:
    def add(*numbers: int) -> Any:
        return site.signature("add", *numbers, queue=worker.queue)

    chained = chain(add(1, 2), add(3), add(4)).apply_async()
    grouped = group(add(n, n) for n in range(50)).apply_async()
    summed = chord((add(n, n) for n in range(50)), app=site.app)(site.signature("total", queue=worker.queue))

    assert get(chained) == 10
    assert get(grouped) == [2 * n for n in range(50)]
    assert get(summed) == 2450


def test_plain_function_and_eager_call_inside_a_body(site: Site, worker: Worker) -> None:
    plain, eager = site.send("plain", 41, queue=worker.queue), site.send("calls_eagerly", queue=worker.queue)

    assert get(plain) == 42
    assert get(eager) == [True, 2]


def test_reject_and_ignore_remove_the_message(site: Site, worker: Worker) -> None:
    rejected, ignored = site.send("refuses", "reject", queue=worker.queue), site.send("refuses", "ignore", queue=worker.queue)

    with pytest.raises(Reject):
        get(rejected)
    until(lambda: worker.pool()["running"] == 0, "both to end")
    assert ignored.state == "PENDING"


def test_body_that_exits_or_is_cancelled_from_inside_fails_alone(site: Site, worker: Worker) -> None:
    exits = site.send("refuses", "exit", queue=worker.queue)
    cancelled = site.send("refuses", "cancelled", queue=worker.queue)
    child = site.send("child_exits", queue=worker.queue)

    with pytest.raises(WorkerLostError):
        get(exits)
    with pytest.raises(RuntimeError, match="cancelled from inside"):
        get(cancelled)
    assert get(child) == "continued"


def test_rate_limit_spreads_the_starts(site: Site, worker: Worker) -> None:
    key = uuid.uuid4().hex
    get(group(site.signature("limited", key, queue=worker.queue) for _ in range(8)).apply_async())

    begun = sorted(float(at) for at in site.notes.lrange(key, 0, -1))
    assert begun[-1] - begun[0] > 0.5  # ten a second: seven gaps, with tolerance for a late first start


def test_inspect_counts_600_tasks_in_flight(site: Site, worker: Worker) -> None:
    gate = uuid.uuid4().hex
    held = group(site.signature("holds", gate, queue=worker.queue) for _ in range(600)).apply_async()
    until(lambda: site.count(f"begun:{gate}") == 600, "600 starts")
    until(lambda: len(worker.ask("active")) == 600, "600 rows of active tasks")  # they are listed a moment after they start
    pool = worker.pool()
    site.open(gate)

    assert (pool["running"], pool["queued"], pool["max-concurrency"]) == (600, 0, 600)
    assert pool["loop-lag-ms-worst-30s"] >= pool["loop-lag-ms"] >= 0
    assert len({row["worker_pid"] for row in worker.ask("active")} - {None}) <= 600
    assert get(held) == ["held"] * 600


def test_body_that_blocks_the_loop_does_not_block_remote_control(site: Site, worker: Worker) -> None:
    gate = uuid.uuid4().hex
    blocked = site.send("blocks_the_loop", gate, queue=worker.queue)
    until(lambda: site.count(f"begun:{gate}"), "the block")

    assert worker.ask("ping") == {"ok": "pong"}
    until(lambda: worker.pool()["loop-lag-ms"] > 100, "the lag to show")
    site.open(gate)
    get(blocked)


def test_events_arrive_in_order(site: Site, worker: Worker) -> None:
    with events(site) as collected:
        results = [site.send("add", n, n, queue=worker.queue) for n in range(30)]
        until(lambda: all("task-succeeded" in events_of(collected, result) for result in results), "30 successes")
    assert {tuple(events_of(collected, result)) for result in results} == {("task-received", "task-started", "task-succeeded")}
