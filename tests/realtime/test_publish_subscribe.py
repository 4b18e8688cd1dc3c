"""Passing news over a real Valkey that is stopped, killed and restarted."""

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

from realtime import publisher
from realtime.messages import Delta, LogAdvanced
from realtime.publisher import Publisher
from realtime.subscriber import Subscriber, Subscription
from tests.support.servers import EmbeddedValkey, free_port

SESSION, TURN = uuid4(), uuid4()


@asynccontextmanager
async def both(url: str) -> AsyncIterator[tuple[Publisher, Subscriber]]:
    """One who tells and one who listens."""
    telling, listening = Publisher(url), Subscriber(url)
    await telling.open()
    await listening.open()
    try:
        yield telling, listening
    finally:
        await listening.close()
        await telling.close()


async def heard(
    watch: Subscription, wanted: Callable[[list[LogAdvanced | Delta]], bool], within_s: float = 10
) -> list[LogAdvanced | Delta]:
    """Everything but "look" that is heard until it is what is wanted."""
    pieces: list[LogAdvanced | Delta] = []
    deadline = time.monotonic() + within_s
    while not wanted(pieces):
        assert time.monotonic() < deadline, f"heard {pieces}"
        piece = await watch.next(0.2)
        if piece is not None and piece != LogAdvanced(-1):
            pieces.append(piece)
    return pieces


async def seen(caplog: pytest.LogCaptureFixture, words: str) -> None:
    """Wait until the log says `words`."""
    deadline = time.monotonic() + 15
    while words not in caplog.text:
        assert time.monotonic() < deadline, caplog.text
        await asyncio.sleep(0.05)


async def in_touch(telling: Publisher, watch: Subscription, session_id: UUID = SESSION, offset: int = 0) -> None:
    """Tell an offset until it is heard: from here on both ends are connected."""
    deadline = time.monotonic() + 15
    while True:
        assert time.monotonic() < deadline, "they never heard of each other"
        telling.log_advanced(session_id, offset)
        until = time.monotonic() + 0.1
        while (left := until - time.monotonic()) > 0:
            if await watch.next(left) == LogAdvanced(offset):
                while await watch.next(0.15) is not None:
                    pass
                return


async def test_what_is_told_is_heard_in_order_by_those_who_watch_the_session(broker_url: str):
    async with (
        both(broker_url) as (telling, listening),
        listening.subscribe(SESSION) as one,
        listening.subscribe(SESSION) as two,
        listening.subscribe(uuid4()) as stranger,
    ):
        await in_touch(telling, one)
        await heard(two, bool)
        telling.token_delta(SESSION, TURN, 1, "Let me ")
        telling.token_delta(SESSION, TURN, 1, "look. \ud83d")
        telling.log_advanced(SESSION, 4)
        telling.log_advanced(SESSION, 5)
        telling.token_delta(SESSION, TURN, 1, "\ude00\0Paid.")
        told = [Delta(TURN, 1, "Let me look. \ud83d"), LogAdvanced(5), Delta(TURN, 1, "\ude00\0Paid.")]

        assert await heard(one, lambda pieces: len(pieces) == 3) == told
        assert await heard(two, lambda pieces: len(pieces) == 3) == told
        assert await stranger.next(0.05) in (None, LogAdvanced(-1))


async def test_the_last_reader_to_leave_is_the_last_to_be_told(broker_url: str):
    async with both(broker_url) as (telling, listening):
        for offset in range(3):
            async with listening.subscribe(SESSION) as first:
                await in_touch(telling, first, offset=2 * offset)
                async with listening.subscribe(SESSION) as second:
                    await in_touch(telling, second, offset=2 * offset + 1)
                await in_touch(telling, first, offset=2 * offset)
        assert listening._subscriptions == {}


async def test_without_an_address_nothing_is_told_and_a_nudge_is_still_heard():
    async with both("") as (telling, listening), listening.subscribe(SESSION) as watch:
        telling.log_advanced(SESSION, 1)
        telling.token_delta(SESSION, TURN, 1, "Hi")
        assert await watch.next(0.01) is None
        listening.nudge()
        assert await watch.next(1) == LogAdvanced(-1)


async def test_whoever_subscriptions_when_the_connection_is_made_looks_once(broker_url: str):
    listening = Subscriber(broker_url)
    async with listening.subscribe(SESSION) as watch:
        await listening.open()
        assert await watch.next(10) == LogAdvanced(-1)
        await listening.close()


async def test_after_a_restart_everybody_looks_and_hears_again(scratch: Path, caplog: pytest.LogCaptureFixture):
    port, directory = free_port(), scratch / f"valkey-{uuid4().hex}"
    with EmbeddedValkey(directory, port) as server:
        url = server.url
    caplog.set_level(logging.INFO, "realtime")
    async with both(url) as (telling, listening), listening.subscribe(SESSION) as watch:
        with EmbeddedValkey(directory, port) as server:
            await in_touch(telling, watch)
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
            assert await watch.next(10) == LogAdvanced(-1)
            telling.token_delta(SESSION, TURN, 1, "lost")
            telling.log_advanced(SESSION, 7)
            await seen(caplog, "Publishing realtime messages failed")
            assert telling._queued == {SESSION: [LogAdvanced(7)]}, "news is kept for a Valkey that comes back, and tokens are not"
        with EmbeddedValkey(directory, port):
            assert await watch.next(10) in (LogAdvanced(-1), LogAdvanced(7))
            await in_touch(telling, watch, offset=8)
            telling.token_delta(SESSION, TURN, 1, "the rest of a reply with a hole in it")
            telling.token_delta(SESSION, TURN, 2, "again")
            assert await heard(watch, bool) == [Delta(TURN, 2, "again")]


async def test_a_valkey_that_is_down_holds_nobody_up_and_is_said_once(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "realtime"):
        began = time.monotonic()
        async with both(f"redis://127.0.0.1:{free_port()}") as (telling, listening), listening.subscribe(SESSION):
            for number in range(200):
                telling.log_advanced(SESSION, number)
                telling.token_delta(uuid4(), uuid4(), 1, "x" * 1000)
            assert time.monotonic() - began < 1
            await asyncio.sleep(2.5)  # two rounds of trying
    assert caplog.text.count("Publishing realtime messages failed") == 1
    assert caplog.text.count("Receiving realtime messages failed") == 1


async def test_a_stalled_valkey_costs_bounded_memory_and_a_bounded_stop(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(publisher, "FLUSH_TIMEOUT_S", 0.3)
    with EmbeddedValkey(None) as server:
        assert server.pid is not None
        async with both(server.url) as (telling, listening), listening.subscribe(SESSION) as watch:
            await in_touch(telling, watch)
            os.kill(server.pid, signal.SIGSTOP)
            try:
                for _ in range(3 * publisher.MAX_CHARS // 100_000):
                    telling.token_delta(SESSION, TURN, 1, "x" * 100_000)
                    telling.token_delta(SESSION, uuid4(), 1, "y" * 100_000)
                    await asyncio.sleep(0)
                held = sum(len(piece.text) for pieces in telling._queued.values() for piece in pieces if isinstance(piece, Delta))
                assert held <= publisher.MAX_CHARS
                began = time.monotonic()
                await telling.close()
                assert time.monotonic() - began < 5
            finally:
                os.kill(server.pid, signal.SIGCONT)


async def test_a_valkey_that_was_slow_tells_no_piece_twice():
    with EmbeddedValkey(None) as server:
        assert server.pid is not None
        async with both(server.url) as (telling, listening), listening.subscribe(SESSION) as watch:
            await in_touch(telling, watch)
            os.kill(server.pid, signal.SIGSTOP)
            try:
                telling.token_delta(SESSION, TURN, 1, "slow")
                await asyncio.sleep(2.5)  # longer than an answer is waited for, shorter than a flush may take
            finally:
                os.kill(server.pid, signal.SIGCONT)
            telling.log_advanced(SESSION, 7)
            found = await heard(watch, lambda pieces: LogAdvanced(7) in pieces)
    assert "".join(piece.text for piece in found if isinstance(piece, Delta)) in ("", "slow")


async def test_a_reader_that_falls_behind_loses_the_rest_of_the_reply_and_no_news():
    watch = Subscription()
    for number in range(100):
        watch.put(Delta(TURN, 1, "x" * 10_000))
        watch.put(LogAdvanced(number))
    watch.put(Delta(TURN, 2, "again"))

    assert await watch.next(1) == LogAdvanced(99)
    assert await watch.next(1) == Delta(TURN, 2, "again")
    assert await watch.next(0.01) is None


async def test_news_that_is_none_is_dropped(broker_url: str):
    import redis.asyncio

    async with both(broker_url) as (telling, listening), listening.subscribe(SESSION) as watch:
        await in_touch(telling, watch)
        async with redis.asyncio.Redis.from_url(broker_url) as client:
            for junk in ("", "{", '"x"', "{}", '{"turn_id":"x","attempt":1,"text":"t"}', "null"):
                await client.publish(f"turnline:session:{SESSION}", junk)
        await in_touch(telling, watch, offset=3)
