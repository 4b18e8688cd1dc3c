"""A small Celery application for the pool's tests. Its worker gets addresses from the environment; the tests build their own."""

# mypy: disable-error-code="untyped-decorator"
from __future__ import annotations

import asyncio
import contextvars
import os
import time
from typing import Any

from celery import Celery, current_task, signals
from celery.exceptions import Ignore, Reject
from kombu.entity import Exchange, Queue
from redis import Redis

from worker.async_task import AsyncTask
from worker.lifespan import on_loop_start, on_loop_stop

BROKER, RESULTS, QUEUE = "POOL_TEST_BROKER", "POOL_TEST_RESULTS", "POOL_TEST_QUEUE"

turn: contextvars.ContextVar[str] = contextvars.ContextVar("turn")


def queue_on(broker: str, name: str) -> Queue:
    arguments = {"x-queue-type": "quorum"} if broker.startswith("amqp") else None
    return Queue(name, Exchange(name, "topic" if arguments else "direct"), name, queue_arguments=arguments)


def build(broker: str, results: str, queue: str) -> Celery:
    app = Celery("pool-tests", broker=broker, backend=results, task_cls=AsyncTask, set_as_current=False)
    app.conf.update(
        task_default_queue=queue,
        task_queues=[queue_on(broker, queue)],
        task_acks_late=True,
        task_send_sent_event=True,
        worker_send_task_events=True,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_soft_shutdown_timeout=float(os.environ.get("POOL_TEST_SOFT_SHUTDOWN_S", "0")),
        broker_connection_retry_on_startup=True,
        broker_heartbeat=float(os.environ.get("POOL_TEST_HEARTBEAT_S", "30")),
        result_expires=600,
    )
    if broker.startswith("amqp"):
        app.conf.update(
            broker_transport_options={"confirm_publish": True},
            broker_native_delayed_delivery_queue_type="classic",
        )
    elif broker.startswith("redis"):
        app.conf.broker_transport = os.environ.get("POOL_TEST_TRANSPORT", "worker.redis_transport:Transport")
        app.conf.broker_transport_options = {"visibility_timeout": 600, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}
    notes: Redis = Redis.from_url(results, decode_responses=True) if results.startswith("redis") else Redis()
    gates: dict[str, asyncio.Event] = {}

    async def wait_at(gate: str) -> None:
        """Wait until the test opens `gate`. One of the waiting bodies polls for all; if it is cancelled, another takes over."""
        while gate in gates:
            await gates[gate].wait()
            if notes.exists(f"gate:{gate}"):
                return
        opened = gates[gate] = asyncio.Event()
        try:
            while not notes.exists(f"gate:{gate}"):
                await asyncio.sleep(0.02)
        finally:
            opened.set()
            del gates[gate]

    @app.task(shared=False, bind=True)
    async def identity(self: Any, n: int) -> Any:
        turn.set(self.request.id)
        mixed = 0
        for step in range(5):
            await asyncio.sleep(0.001 * ((n * 7 + step) % 13))
            mine = self.request.id
            mixed += not (mine == turn.get() == current_task.request.id and self.request.args == [n] and current_task.name == self.name)
        async with asyncio.TaskGroup() as children:
            seen = [children.create_task(_seen()) for _ in range(2)]
        return sum((mixed, *(child.result() != mine for child in seen)))

    async def _seen() -> str:
        await asyncio.sleep(0)
        return turn.get()

    @app.task(shared=False, bind=True, autoretry_for=(ConnectionError,), retry_kwargs={"max_retries": 3, "countdown": 0})
    async def flaky(self: Any) -> int:
        await asyncio.sleep(0)
        if self.request.retries < 2:
            raise ConnectionError("not yet")
        return int(self.request.retries)

    @app.task(shared=False, bind=True, max_retries=3)
    async def retries_itself(self: Any) -> int:
        await asyncio.sleep(0)
        if self.request.retries < 2:
            raise self.retry(countdown=0)
        return int(self.request.retries)

    @app.task(shared=False)
    async def fails_deep(depth: int = 3) -> None:
        await asyncio.sleep(0)
        if depth:
            await fails_deep.__wrapped__(depth - 1)
        raise LookupError("at the bottom")

    @app.task(shared=False, bind=True)
    async def sleeps(self: Any, seconds: float) -> str:
        try:
            async with asyncio.TaskGroup() as children:
                children.create_task(_child(self.request.id, seconds))
                await asyncio.sleep(seconds)
        finally:
            notes.rpush(f"notes:{self.request.id}", "body ended")
        return "slept"

    async def _child(task_id: str, seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            notes.rpush(f"notes:{task_id}", "child cancelled")
            raise

    @app.task(shared=False)
    async def ends_early(seconds: float) -> str:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            return "cut short"
        return "slept"

    @app.task(shared=False, bind=True)
    async def swallows(self: Any, times: int) -> str:
        for _ in range(times):
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                notes.rpush(f"notes:{self.request.id}", "swallowed")
        notes.rpush(f"notes:{self.request.id}", "returned")
        return "late"

    @app.task(shared=False, bind=True)
    async def holds(self: Any, gate: str) -> str:
        notes.rpush(f"begun:{gate}", self.request.id)
        try:
            await wait_at(gate)
        except asyncio.CancelledError:
            notes.rpush(f"cancelled:{gate}", self.request.id)
            raise
        notes.rpush(f"ended:{gate}", self.request.id)
        return "held"

    @app.task(shared=False)
    async def blocks_the_loop(gate: str) -> None:
        notes.rpush(f"begun:{gate}", "")
        while not notes.exists(f"gate:{gate}"):
            time.sleep(0.02)

    @app.task(shared=False)
    async def add(x: int, y: int) -> int:
        await asyncio.sleep(0.001)
        return x + y

    @app.task(shared=False)
    async def total(numbers: list[int]) -> int:
        return sum(numbers)

    @app.task(shared=False)
    def plain(x: int) -> int:
        return x + 1

    @app.task(shared=False, rate_limit="10/s")
    async def limited(key: str) -> None:
        notes.rpush(key, time.time())

    @app.task(shared=False)
    async def refuses(how: str) -> None:
        await asyncio.sleep(0)
        raise {"reject": Reject("no", requeue=False), "ignore": Ignore(), "exit": SystemExit(3), "cancelled": asyncio.CancelledError()}[how]

    @app.task(shared=False)
    async def child_exits() -> str:
        async def leaves() -> None:
            raise SystemExit(3)

        try:
            await asyncio.create_task(leaves())
        except SystemExit:
            return "continued"
        return "not reached"

    @app.task(shared=False, bind=True)
    async def calls_eagerly(self: Any) -> list[Any]:
        before = self.request.id
        result = flaky.apply()
        return [before == self.request.id, result.get(disable_sync_subtasks=False)]

    return app


if BROKER in os.environ:
    app = build(os.environ[BROKER], os.environ[RESULTS], os.environ[QUEUE])
    journal = Redis.from_url(os.environ[RESULTS], decode_responses=True)

    @signals.worker_ready.connect
    def _ready(sender: Any, **_: Any) -> None:
        journal.set(f"ready:{sender.hostname}", os.getpid())

    @on_loop_start
    async def _opened() -> None:
        await asyncio.sleep(0)
        if "POOL_TEST_FAIL_START" in os.environ:
            raise RuntimeError("the database is not available")
        journal.rpush(f"hooks:{os.environ[QUEUE]}", "first opened")

    @on_loop_start
    async def _opened_too() -> None:
        journal.rpush(f"hooks:{os.environ[QUEUE]}", "second opened")

    @on_loop_stop
    async def _closed() -> None:
        await asyncio.sleep(0)
        ended = journal.llen(f"ended:{os.environ[QUEUE]}")
        journal.rpush(f"hooks:{os.environ[QUEUE]}", f"first closed after {ended}")

    @on_loop_stop
    async def _closed_too() -> None:
        journal.rpush(f"hooks:{os.environ[QUEUE]}", "second closed")
        raise RuntimeError("a failing hook does not prevent the others")
