"""The pool's parts by themselves: the greenlet bridge, and the mailbox on Celery's hub."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from kombu.asynchronous import Hub

from worker import async_task
from worker.async_task import complete
from worker.greenlet_bridge import GreenletCall, current
from worker.mailbox import MAX_PER_CYCLE, Mailbox

colour: contextvars.ContextVar[str] = contextvars.ContextVar("colour")


async def shade(seconds: float = 0.001) -> str:
    await asyncio.sleep(seconds)
    return colour.get()


def keep_end(_: BaseException | None) -> BaseException | None:
    return None


async def test_both_sides_of_the_bridge_share_context_variables() -> None:
    colour.set("red")

    def plain() -> str:
        seen = complete(shade())
        colour.set("blue")
        return seen

    assert await GreenletCall(plain, keep_end) == "red"
    assert colour.get() == "blue"
    assert current() is None


async def test_awaits_nest_and_propagate_exceptions() -> None:
    async def fails() -> None:
        await asyncio.sleep(0)
        raise LookupError("inside")

    async def outer() -> str:
        with pytest.raises(LookupError, match="inside"):
            complete(fails())  # an eager call in the middle of a body
        async with asyncio.timeout(5):
            return complete(shade()) + await shade()

    colour.set("red")
    assert await GreenletCall(lambda: complete(outer()), keep_end) == "redred"


async def test_end_of_a_coroutine_can_be_replaced() -> None:
    assert await GreenletCall(lambda: complete(shade()) if colour.set("red") else "", keep_end) == "red"

    with pytest.raises(KeyError) as raised:
        await GreenletCall(lambda: complete(shade()), lambda ended: KeyError(repr(ended)))
    assert raised.value.args == ("None",)

    with pytest.raises(KeyError, match="LookupError"):
        await GreenletCall(lambda: complete(asyncio.wait_for(_lookup(), 5)), lambda ended: KeyError(repr(ended)))


async def _lookup() -> None:
    raise LookupError


async def test_cancellation_reaches_the_awaited_coroutine() -> None:
    started = asyncio.Event()
    ended: list[str] = []

    async def body() -> None:
        started.set()
        try:
            await asyncio.sleep(600)
        finally:
            ended.append("ended")

    async def run() -> None:
        await GreenletCall(lambda: complete(body()), keep_end)

    task = asyncio.create_task(run())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["ended"]


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    mailbox = Mailbox()
    hub = Hub()
    mailbox.attach(hub)
    yield mailbox
    mailbox.close()
    hub.close()


def test_callbacks_run_in_order_on_the_hubs_thread(mailbox: Mailbox) -> None:
    called: list[Any] = []

    def post() -> None:
        for n in range(2 * MAX_PER_CYCLE + 1):
            mailbox.post(lambda n=n: called.append((n, threading.get_ident())))

    thread = threading.Thread(target=post)
    thread.start()
    thread.join()
    assert mailbox.hub is not None
    for _ in range(3):  # at most MAX_PER_CYCLE per cycle, and a wake-up for the rest
        mailbox.hub.run_once()

    assert called == [(n, threading.get_ident()) for n in range(2 * MAX_PER_CYCLE + 1)]


def test_failing_callback_does_not_affect_others(mailbox: Mailbox) -> None:
    called: list[str] = []

    def fails() -> None:
        raise LookupError

    def ends_the_worker() -> None:
        raise MemoryError

    mailbox.post(fails)
    mailbox.post(called.append, "after a failure")
    mailbox.post(ends_the_worker)
    mailbox.post(called.append, "after the end")
    with pytest.raises(MemoryError):
        mailbox.deliver()
    mailbox.deliver()

    assert called == ["after a failure", "after the end"]


def test_callback_posted_during_delivery_is_called(mailbox: Mailbox) -> None:
    called: list[str] = []
    mailbox.post(lambda: mailbox.post(called.append, "second"))
    assert mailbox.hub is not None
    mailbox.hub.run_once()
    mailbox.hub.run_once()

    assert called == ["second"]


def test_only_acknowledgements_and_events_run_while_draining(mailbox: Mailbox) -> None:
    """The transport's reader, which is on the hub as well, would hand new messages to a closed pool."""
    called: list[str] = []
    assert mailbox.hub is not None
    mailbox.hub.call_soon(called.append, "a reader")
    mailbox.post(called.append, "a post")
    mailbox.drain(0)

    assert called == ["a post"]
    assert len(mailbox.hub._ready) == 1


async def test_loop_of_an_ended_thread_can_be_closed_inside_a_running_loop() -> None:
    own = async_task._OwnLoop()
    await asyncio.to_thread(own.runner.run, asyncio.sleep(0))
    loop = own.runner.get_loop()

    own.close()

    assert loop.is_closed()
