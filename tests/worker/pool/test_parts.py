"""The pool's parts by themselves: stepping, and posting to Celery's hub."""

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
from worker.greenlet_bridge import GreenletRun, here
from worker.mailbox import AT_ONCE, Mailbox

colour: contextvars.ContextVar[str] = contextvars.ContextVar("colour")


async def shade(seconds: float = 0.001) -> str:
    await asyncio.sleep(seconds)
    return colour.get()


def leave_alone(_: BaseException | None) -> BaseException | None:
    return None


async def test_both_sides_of_a_step_share_their_context_variables() -> None:
    colour.set("red")

    def plain() -> str:
        seen = complete(shade())
        colour.set("blue")
        return seen

    assert await GreenletRun(plain, leave_alone) == "red"
    assert colour.get() == "blue"
    assert here() is None


async def test_waits_nest_and_pass_on_failures() -> None:
    async def fails() -> None:
        await asyncio.sleep(0)
        raise LookupError("inside")

    async def outer() -> str:
        with pytest.raises(LookupError, match="inside"):
            complete(fails())  # an eager call in the middle of a body
        async with asyncio.timeout(5):
            return complete(shade()) + await shade()

    colour.set("red")
    assert await GreenletRun(lambda: complete(outer()), leave_alone) == "redred"


async def test_the_edge_decides_how_a_body_ended() -> None:
    assert await GreenletRun(lambda: complete(shade()) if colour.set("red") else "", leave_alone) == "red"

    with pytest.raises(KeyError) as raised:
        await GreenletRun(lambda: complete(shade()), lambda ended: KeyError(repr(ended)))
    assert raised.value.args == ("None",)

    with pytest.raises(KeyError, match="LookupError"):
        await GreenletRun(lambda: complete(asyncio.wait_for(_lookup(), 5)), lambda ended: KeyError(repr(ended)))


async def _lookup() -> None:
    raise LookupError


async def test_a_cancelled_step_cancels_what_it_waits_for() -> None:
    begun = asyncio.Event()
    ended: list[str] = []

    async def body() -> None:
        begun.set()
        try:
            await asyncio.sleep(600)
        finally:
            ended.append("ended")

    async def steps() -> None:
        await GreenletRun(lambda: complete(body()), leave_alone)

    task = asyncio.create_task(steps())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["ended"]


@pytest.fixture
def posts() -> Iterator[Mailbox]:
    posts = Mailbox()
    hub = Hub()
    posts.attach(hub)
    yield posts
    posts.close()
    hub.close()


def test_posts_arrive_in_order_and_on_the_hubs_thread(posts: Mailbox) -> None:
    heard: list[Any] = []

    def post() -> None:
        for n in range(2 * AT_ONCE + 1):
            posts.post(lambda n=n: heard.append((n, threading.get_ident())))

    thread = threading.Thread(target=post)
    thread.start()
    thread.join()
    assert posts.hub is not None
    for _ in range(3):  # no more than AT_ONCE in a turn, and a bell for the rest
        posts.hub.run_once()

    assert heard == [(n, threading.get_ident()) for n in range(2 * AT_ONCE + 1)]


def test_a_failing_post_takes_no_other_with_it(posts: Mailbox) -> None:
    heard: list[str] = []

    def fails() -> None:
        raise LookupError

    def ends_the_worker() -> None:
        raise MemoryError

    posts.post(fails)
    posts.post(heard.append, "after a failure")
    posts.post(ends_the_worker)
    posts.post(heard.append, "after the end")
    with pytest.raises(MemoryError):
        posts.deliver()
    posts.deliver()

    assert heard == ["after a failure", "after the end"]


def test_a_post_made_while_delivering_is_delivered(posts: Mailbox) -> None:
    heard: list[str] = []
    posts.post(lambda: posts.post(heard.append, "second"))
    assert posts.hub is not None
    posts.hub.run_once()
    posts.hub.run_once()

    assert heard == ["second"]


def test_while_draining_only_acknowledgements_and_events_run(posts: Mailbox) -> None:
    """The transport's reader, which also waits on the hub, would hand new messages to a closed pool."""
    heard: list[str] = []
    assert posts.hub is not None
    posts.hub.call_soon(heard.append, "a reader")
    posts.post(heard.append, "a post")
    posts.drain(0)

    assert heard == ["a post"]
    assert len(posts.hub._ready) == 1


async def test_a_dead_threads_loop_is_closed_even_by_a_collector_that_runs_inside_another_loop() -> None:
    own = async_task._OwnLoop()
    await asyncio.to_thread(own.runner.run, asyncio.sleep(0))
    loop = own.runner.get_loop()

    own.close()

    assert loop.is_closed()
