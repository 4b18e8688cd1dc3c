"""Receives the progress of sessions, for all readers of a process over one connection."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import redis.asyncio
from redis.asyncio.client import PubSub

from realtime.messages import RETRY_S, Delta, LogAdvanced, channel_of, connect, merge, still_running

log = logging.getLogger(__name__)

READER_CHARS = 256 * 1024  # of streamed text waiting for one reader
SILENCE_S = 10.0  # without a message, before the connection is checked with a ping


async def _until_one_ends(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Run them together until one ends or raises, which is raised on; none of them runs on."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    ended.pop().result()


class Subscription:
    """One reader's news of one session. A reader that falls behind loses tokens, never the news that there is something in the log."""

    def __init__(self) -> None:
        self._pieces: deque[LogAdvanced | Delta] = deque()
        self._chars = 0
        self._cut: tuple[UUID, int] | None = None
        self._some = asyncio.Event()

    async def next(self, timeout_s: float) -> LogAdvanced | Delta | None:
        """The next piece of news, or None when there was none for `timeout_s`."""
        if not self._pieces:
            self._some.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._some.wait()
        if not self._pieces:
            return None
        piece = self._pieces.popleft()
        if isinstance(piece, Delta):
            self._chars -= len(piece.text)
        return piece

    def put(self, piece: LogAdvanced | Delta) -> None:
        """Hand over a piece; joined to the last one where it goes on from there."""
        if isinstance(piece, Delta):
            if self._cut == (piece.turn_id, piece.attempt):
                return
            if self._chars + len(piece.text) > READER_CHARS:
                self._cut = (piece.turn_id, piece.attempt)
                offsets = [kept.offset for kept in self._pieces if isinstance(kept, LogAdvanced)]
                self._pieces = deque([LogAdvanced(max(offsets))] if offsets else ())
                self._chars = 0
                return
            self._chars += len(piece.text)
        if self._pieces:
            self._pieces.extend(merge(self._pieces.pop(), piece))
        else:
            self._pieces.append(piece)
        self._some.set()


class Subscriber:
    """Listens, for all readers of a process, over one connection. With the url "" nobody hears anything, but for `nudge`."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._subscriptions: dict[str, set[Subscription]] = {}
        self._changed = asyncio.Event()
        self._client: redis.asyncio.Redis | None = None
        self._listening: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start listening, on the running loop. Waits for no server."""
        if self._url:
            self._client = connect(self._url, tries=1)  # a new connection is ours to notice: something was missed
            self._listening = asyncio.get_running_loop().create_task(self._listen_for_ever(self._client), name="listener")

    async def close(self) -> None:
        """Stop listening."""
        if self._listening is not None and self._client is not None:
            self._listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._listening
            await self._client.aclose()

    @asynccontextmanager
    async def subscribe(self, session_id: UUID) -> AsyncIterator[Subscription]:
        """The session's news from now on. What happened before, and what gets lost on the way, is in the log."""
        channel, subscription = channel_of(session_id), Subscription()
        subscriptions = self._subscriptions.setdefault(channel, set())
        subscriptions.add(subscription)
        self._changed.set()
        try:
            yield subscription
        finally:
            subscriptions.discard(subscription)
            if not subscriptions and self._subscriptions.get(channel) is subscriptions:
                del self._subscriptions[channel]
                self._changed.set()

    def nudge(self) -> None:
        """Make every reader look at its log now."""
        for subscriptions in self._subscriptions.values():
            for subscription in subscriptions:
                subscription.put(LogAdvanced(-1))

    async def _listen_for_ever(self, client: redis.asyncio.Redis) -> None:
        heard = True
        while still_running():
            try:
                async with client.pubsub() as pubsub:
                    followed = set(self._subscriptions)
                    await pubsub.subscribe("turnline:listeners", *followed)
                    self.nudge()  # something may have been said while nobody listened
                    heard = True
                    await _until_one_ends(self._follow(pubsub, followed), self._hear(pubsub))
            except Exception as error:  # noqa: BLE001 - whatever happened, the next connection may do better
                if heard:
                    log.warning("passing news cannot be heard (%s); the log is looked at now and then", type(error).__name__)
                heard = False
            self.nudge()
            await asyncio.sleep(RETRY_S)

    async def _follow(self, pubsub: PubSub, followed: set[str]) -> None:
        """Keep the connection's channels those that are watched; the one place that changes them, so that they end up right."""
        while still_running():
            await self._changed.wait()
            self._changed.clear()
            wanted = set(self._subscriptions)
            if gone := followed - wanted:
                await pubsub.unsubscribe(*gone)
            if new := wanted - followed:
                await pubsub.subscribe(*new)
            followed = wanted

    async def _hear(self, pubsub: PubSub) -> None:
        asked = False
        while still_running():
            message = await pubsub.get_message(timeout=SILENCE_S)
            if message is not None:
                asked = False
                if message["type"] == "message":
                    self._hand_over(message["channel"], message["data"])
            elif asked:
                raise TimeoutError("the connection has gone silent")
            else:
                asked = True
                await pubsub.ping()

    def _hand_over(self, channel: str, data: str) -> None:
        subscriptions = self._subscriptions.get(channel)
        if not subscriptions:
            return
        try:
            said = json.loads(data)
            piece = LogAdvanced(said) if isinstance(said, int) else Delta(UUID(said["turn_id"]), int(said["attempt"]), str(said["text"]))
        except (ValueError, KeyError, TypeError):
            log.warning("news that is none was dropped")
            return
        for subscription in subscriptions:
            subscription.put(piece)
