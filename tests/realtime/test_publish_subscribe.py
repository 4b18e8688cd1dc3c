"""Publishing and subscribing over a real Valkey that is stopped, killed and restarted."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from realtime import publisher as publisher_module
from realtime.messages import Delta, LogAdvanced
from realtime.publisher import Publisher
from realtime.subscriber import Subscriber, Subscription
from tests.support.servers import EmbeddedValkey, free_port

SESSION, TURN = uuid4(), uuid4()


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[tuple[Publisher, Subscriber]]:
    """Open a publisher and a subscriber."""
    publisher, subscriber = Publisher(url), Subscriber(url)
    await publisher.open()
    await subscriber.open()
    try:
        yield publisher, subscriber
    finally:
        await subscriber.close()
        await publisher.close()


async def received(
    subscription: Subscription, complete: Callable[[list[LogAdvanced | Delta]], bool], within_s: float = 10
) -> list[LogAdvanced | Delta]:
    """Return the messages that arrive until they are `complete`, without nudges."""
    messages: list[LogAdvanced | Delta] = []
    deadline = time.monotonic() + within_s
    while not complete(messages):
        assert time.monotonic() < deadline, f"received {messages}"
        message = await subscription.next(0.2)
        if message is not None and message != LogAdvanced(-1):
            messages.append(message)
    return messages


async def logged(caplog: pytest.LogCaptureFixture, words: str) -> None:
    """Wait until `words` have been logged."""
    deadline = time.monotonic() + 15
    while words not in caplog.text:
        assert time.monotonic() < deadline, caplog.text
        await asyncio.sleep(0.05)


async def wait_connected(publisher: Publisher, subscription: Subscription, session_id: UUID = SESSION, offset: int = 0) -> None:
    """Publish an offset until it arrives: then both ends are connected."""
    deadline = time.monotonic() + 15
    while True:
        assert time.monotonic() < deadline, "no message arrived"
        publisher.log_advanced(session_id, offset)
        until = time.monotonic() + 0.1
        while (left := until - time.monotonic()) > 0:
            if await subscription.next(left) == LogAdvanced(offset):
                while await subscription.next(0.15) is not None:
                    pass
                return


async def test_messages_arrive_in_order_at_the_subscribers_of_a_session(broker_url: str):
    async with (
        connected(broker_url) as (publisher, subscriber),
        subscriber.subscribe(SESSION) as one,
        subscriber.subscribe(SESSION) as two,
        subscriber.subscribe(uuid4()) as unrelated,
    ):
        await wait_connected(publisher, one)
        await received(two, bool)
        publisher.token_delta(SESSION, TURN, 1, "Let me ")
        publisher.token_delta(SESSION, TURN, 1, "look. \ud83d")
        publisher.log_advanced(SESSION, 4)
        publisher.log_advanced(SESSION, 5)
        publisher.token_delta(SESSION, TURN, 1, "\ude00\0Paid.")
        expected = [Delta(TURN, 1, "Let me look. \ud83d"), LogAdvanced(5), Delta(TURN, 1, "\ude00\0Paid.")]

        assert await received(one, lambda messages: len(messages) == 3) == expected
        assert await received(two, lambda messages: len(messages) == 3) == expected
        assert await unrelated.next(0.05) in (None, LogAdvanced(-1))


async def test_channel_is_unsubscribed_after_its_last_reader(broker_url: str):
    async with connected(broker_url) as (publisher, subscriber):
        for offset in range(3):
            async with subscriber.subscribe(SESSION) as first:
                await wait_connected(publisher, first, offset=2 * offset)
                async with subscriber.subscribe(SESSION) as second:
                    await wait_connected(publisher, second, offset=2 * offset + 1)
                await wait_connected(publisher, first, offset=2 * offset)
        assert subscriber._subscriptions == {}


async def test_without_a_url_only_nudges_arrive():
    async with connected("") as (publisher, subscriber), subscriber.subscribe(SESSION) as subscription:
        publisher.log_advanced(SESSION, 1)
        publisher.token_delta(SESSION, TURN, 1, "Hi")
        assert await subscription.next(0.01) is None
        subscriber.nudge()
        assert await subscription.next(1) == LogAdvanced(-1)


async def test_readers_are_nudged_when_the_connection_is_made(broker_url: str):
    subscriber = Subscriber(broker_url)
    async with subscriber.subscribe(SESSION) as subscription:
        await subscriber.open()
        assert await subscription.next(10) == LogAdvanced(-1)
        await subscriber.close()


async def test_readers_are_nudged_and_receive_again_after_a_restart(scratch: Path, caplog: pytest.LogCaptureFixture):
    port, directory = free_port(), scratch / f"valkey-{uuid4().hex}"
    with EmbeddedValkey(directory, port) as server:
        url = server.url
    caplog.set_level(logging.INFO, "realtime")
    async with connected(url) as (publisher, subscriber), subscriber.subscribe(SESSION) as subscription:
        with EmbeddedValkey(directory, port) as server:
            await wait_connected(publisher, subscription)
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
            assert await subscription.next(10) == LogAdvanced(-1)
            publisher.token_delta(SESSION, TURN, 1, "lost")
            publisher.log_advanced(SESSION, 7)
            await logged(caplog, "Publishing realtime messages failed")
            assert publisher._queued == {SESSION: [LogAdvanced(7)]}, "offsets are kept until Valkey is back, and deltas are not"
        with EmbeddedValkey(directory, port):
            assert await subscription.next(10) in (LogAdvanced(-1), LogAdvanced(7))
            await wait_connected(publisher, subscription, offset=8)
            publisher.token_delta(SESSION, TURN, 1, "the rest of a truncated reply")
            publisher.token_delta(SESSION, TURN, 2, "again")
            assert await received(subscription, bool) == [Delta(TURN, 2, "again")]


async def test_unavailable_valkey_blocks_nothing_and_is_logged_once(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "realtime"):
        began = time.monotonic()
        async with connected(f"redis://127.0.0.1:{free_port()}") as (publisher, subscriber), subscriber.subscribe(SESSION):
            for number in range(200):
                publisher.log_advanced(SESSION, number)
                publisher.token_delta(uuid4(), uuid4(), 1, "x" * 1000)
            assert time.monotonic() - began < 1
            await asyncio.sleep(2.5)  # two attempts to connect
    assert caplog.text.count("Publishing realtime messages failed") == 1
    assert caplog.text.count("Receiving realtime messages failed") == 1


async def test_stalled_valkey_costs_bounded_memory_and_a_bounded_close(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(publisher_module, "FLUSH_TIMEOUT_S", 0.3)
    with EmbeddedValkey(None) as server:
        assert server.pid is not None
        async with connected(server.url) as (publisher, subscriber), subscriber.subscribe(SESSION) as subscription:
            await wait_connected(publisher, subscription)
            os.kill(server.pid, signal.SIGSTOP)
            try:
                for _ in range(3 * publisher_module.MAX_CHARS // 100_000):
                    publisher.token_delta(SESSION, TURN, 1, "x" * 100_000)
                    publisher.token_delta(SESSION, uuid4(), 1, "y" * 100_000)
                    await asyncio.sleep(0)
                queued = sum(
                    len(message.text) for messages in publisher._queued.values() for message in messages if isinstance(message, Delta)
                )
                assert queued <= publisher_module.MAX_CHARS
                began = time.monotonic()
                await publisher.close()
                assert time.monotonic() - began < 5
            finally:
                os.kill(server.pid, signal.SIGCONT)


async def test_slow_valkey_delivers_no_message_twice():
    with EmbeddedValkey(None) as server:
        assert server.pid is not None
        async with connected(server.url) as (publisher, subscriber), subscriber.subscribe(SESSION) as subscription:
            await wait_connected(publisher, subscription)
            os.kill(server.pid, signal.SIGSTOP)
            try:
                publisher.token_delta(SESSION, TURN, 1, "slow")
                await asyncio.sleep(2.5)  # longer than the socket timeout, shorter than FLUSH_TIMEOUT_S
            finally:
                os.kill(server.pid, signal.SIGCONT)
            publisher.log_advanced(SESSION, 7)
            found = await received(subscription, lambda messages: LogAdvanced(7) in messages)
    assert "".join(message.text for message in found if isinstance(message, Delta)) in ("", "slow")


async def test_slow_reader_loses_deltas_and_never_the_latest_offset():
    subscription = Subscription()
    for number in range(100):
        subscription.put(Delta(TURN, 1, "x" * 10_000))
        subscription.put(LogAdvanced(number))
    subscription.put(Delta(TURN, 2, "again"))

    assert await subscription.next(1) == LogAdvanced(99)
    assert await subscription.next(1) == Delta(TURN, 2, "again")
    assert await subscription.next(0.01) is None


async def test_malformed_message_is_ignored(broker_url: str):
    import redis.asyncio

    async with connected(broker_url) as (publisher, subscriber), subscriber.subscribe(SESSION) as subscription:
        await wait_connected(publisher, subscription)
        async with redis.asyncio.Redis.from_url(broker_url) as client:
            for junk in ("", "{", '"x"', "{}", '{"turn_id":"x","attempt":1,"text":"t"}', "null"):
                await client.publish(f"turnline:session:{SESSION}", junk)
        await wait_connected(publisher, subscription, offset=3)
