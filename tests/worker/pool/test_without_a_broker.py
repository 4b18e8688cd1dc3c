"""Async tasks without a broker process: in memory, eagerly, under other pools, called as functions."""

# mypy: disable-error-code="untyped-decorator"
from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from celery import Celery, current_task
from celery.contrib.testing.worker import start_worker

from worker import lifespan
from worker.async_task import AsyncTask


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Celery:
    # Another test of this process may have imported the product, whose hooks need its servers.
    monkeypatch.setattr(lifespan, "_on_start", [])
    monkeypatch.setattr(lifespan, "_on_stop", [])
    app = Celery("memory-tests", broker="memory://", backend="cache+memory://", task_cls=AsyncTask, set_as_current=False)
    app.conf.update(
        task_acks_late=True, worker_prefetch_multiplier=1, worker_hijack_root_logger=False, broker_connection_retry_on_startup=True
    )
    return app


def flaky_on(app: Celery) -> Any:
    @app.task(bind=True, shared=False, autoretry_for=(ConnectionError,), retry_kwargs={"max_retries": 3, "countdown": 0})
    async def flaky(self: Any, n: int) -> list[Any]:
        mine = self.request.id
        await asyncio.sleep(0.01)
        if self.request.retries < 1:
            raise ConnectionError("not yet")
        return [n, self.request.retries, mine == self.request.id == current_task.request.id]

    return flaky


def test_pool_on_the_memory_broker(app: Celery) -> None:
    @app.task(shared=False, soft_time_limit=0.05)
    async def ends_early() -> str:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            return "cut short"
        return "slept"

    flaky = flaky_on(app)
    with start_worker(app, pool="worker.pool:TaskPool", concurrency=20, perform_ping_check=False):
        results = [flaky.delay(n) for n in range(20)]

        assert ends_early.delay().get(timeout=30, interval=0.02) == "cut short"
        assert [result.get(timeout=30, interval=0.02) for result in results] == [[n, 1, True] for n in range(20)]


def test_threads_run_their_own_tasks(app: Celery) -> None:
    flaky = flaky_on(app)
    app.finalize()  # as a worker does: Celery binds tasks on first use otherwise, which threads may not do at once
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda n: flaky.apply(args=(n,)).get(), range(40)))

    assert results == [[n, 1, True] for n in range(40)]


def test_eager_call_retries_and_has_its_request(app: Celery) -> None:
    assert flaky_on(app).apply(args=(7,)).get() == [7, 1, True]


def test_class_based_task_retries(app: Celery) -> None:
    class Flaky(AsyncTask):
        name = "flaky-class"  # type: ignore[assignment]
        autoretry_for = (ConnectionError,)
        retry_kwargs = {"max_retries": 3, "countdown": 0}  # noqa: RUF012

        async def run(self, n: int) -> int:
            await asyncio.sleep(0)
            if self.request.retries < 2:
                raise ConnectionError("not yet")
            return n

    assert app.register_task(Flaky()).apply(args=(7,)).get() == 7


def test_decorated_async_body_is_completed(app: Celery) -> None:
    import functools

    def twice(body: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(body)
        def wrapper(*args: Any) -> Any:
            return body(*(2 * each for each in args))

        return wrapper

    @app.task(shared=False)
    @twice
    async def same(n: int) -> int:
        await asyncio.sleep(0)
        return n

    assert same(3) == 6


def test_calls_on_one_thread_share_a_loop(app: Celery) -> None:
    @app.task(shared=False)
    async def loop() -> int:
        return id(asyncio.get_running_loop())

    assert loop() == loop()


def test_interrupted_body_does_not_continue_in_the_next_call(app: Celery) -> None:
    """A prefork child's soft time limit is an exception from a signal handler, anywhere in the loop."""
    ended: list[str] = []

    @app.task(shared=False)
    async def interrupted() -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(0.01, loop.stop)  # makes `run_until_complete` raise before the body has ended
        try:
            await asyncio.sleep(600)
        finally:
            ended.append("ended")

    @app.task(shared=False)
    async def next_one() -> list[str]:
        return list(ended)

    with pytest.raises(RuntimeError, match="stopped before"):
        interrupted()
    assert next_one() == ["ended"]


def test_forked_child_gets_its_own_loop(app: Celery) -> None:
    @app.task(shared=False)
    async def sleeps() -> None:
        await asyncio.sleep(0.001)
        await asyncio.to_thread(str)  # its result arrives through the pipe that wakes the loop

    sleeps()
    child = os.fork()
    if not child:
        sleeps()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    sleeps()


async def test_call_inside_a_loop_raises_with_advice(app: Celery) -> None:
    flaky = flaky_on(app)

    with pytest.raises(RuntimeError, match="to_thread"):
        flaky.run(1)
    result = await asyncio.to_thread(flaky.apply, args=(7,))
    assert result.get() == [7, 1, True]
