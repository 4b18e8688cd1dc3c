"""Receives the realtime messages of sessions, for all readers of a process over one connection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import redis.asyncio
from redis.asyncio.client import PubSub

from realtime.messages import RETRY_S, Delta, LogAdvanced, Message, channel_of, connect, decode, merge, still_running

log = logging.getLogger(__name__)

READER_CHARS = 256 * 1024  # of streamed text queued for one reader
SILENCE_S = 10.0  # without a message, before the connection is checked with a ping


async def _until_one_ends(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Run the coroutines together until one ends, cancel the others, and raise what that one raised."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    ended.pop().result()


class Subscription:
    """One reader's queue of messages about one session. A reader that falls behind loses deltas, never a LogAdvanced."""

    def __init__(self) -> None:
        self._messages: deque[Message] = deque()
        self._chars = 0
        self._truncated: tuple[UUID, int] | None = None
        self._has_message = asyncio.Event()

    async def next(self, timeout_s: float) -> Message | None:
        """Return the next message, or None if none arrived within `timeout_s`."""
        if not self._messages:
            self._has_message.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._has_message.wait()
        if not self._messages:
            return None
        message = self._messages.popleft()
        if isinstance(message, Delta):
            self._chars -= len(message.text)
        return message

    def put(self, message: Message) -> None:
        """Queue a message; it is merged with the last one if it continues that."""
        if isinstance(message, Delta):
            if self._truncated == (message.turn_id, message.attempt):
                return
            if self._chars + len(message.text) > READER_CHARS:
                self._truncated = (message.turn_id, message.attempt)
                offsets = [queued.offset for queued in self._messages if isinstance(queued, LogAdvanced)]
                self._messages = deque([LogAdvanced(max(offsets))] if offsets else ())
                self._chars = 0
                return
            self._chars += len(message.text)
        if self._messages:
            self._messages.extend(merge(self._messages.pop(), message))
        else:
            self._messages.append(message)
        self._has_message.set()


class Subscriber:
    """Subscribes for all readers of a process, over one connection. With the URL "" it receives nothing, and only `nudge` works."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._subscriptions: dict[str, set[Subscription]] = {}
        self._changed = asyncio.Event()
        self._client: redis.asyncio.Redis | None = None
        self._receiving: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start receiving on the running loop. Does not wait for the server."""
        if self._url:
            # One try: the client must not reconnect by itself, because readers are nudged after each new connection.
            self._client = connect(self._url, tries=1)
            self._receiving = asyncio.get_running_loop().create_task(self._receive_for_ever(self._client), name="subscriber")

    async def close(self) -> None:
        """Stop receiving."""
        if self._receiving is not None and self._client is not None:
            self._receiving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._receiving
            await self._client.aclose()

    @asynccontextmanager
    async def subscribe(self, session_id: UUID) -> AsyncIterator[Subscription]:
        """Subscribe to the session from now on. Read the log for what happened before, and for messages that get lost."""
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
        """Make every reader read its log now."""
        for subscriptions in self._subscriptions.values():
            for subscription in subscriptions:
                subscription.put(LogAdvanced(-1))

    async def _receive_for_ever(self, client: redis.asyncio.Redis) -> None:
        connected = True
        while still_running():
            try:
                async with client.pubsub() as pubsub:
                    channels = set(self._subscriptions)
                    await pubsub.subscribe("turnline:listeners", *channels)
                    self.nudge()  # messages may have been published while there was no connection
                    connected = True
                    await _until_one_ends(self._update_channels(pubsub, channels), self._receive(pubsub))
            except Exception as error:  # noqa: BLE001 - whatever happened, the next connection may do better
                if connected:
                    log.warning("Receiving realtime messages failed (%s); readers poll the log until it works again", type(error).__name__)
                connected = False
            self.nudge()
            await asyncio.sleep(RETRY_S)

    async def _update_channels(self, pubsub: PubSub, channels: set[str]) -> None:
        """Keep the connection subscribed to the channels that have readers. Nothing else changes them, so changes cannot overtake."""
        while still_running():
            await self._changed.wait()
            self._changed.clear()
            wanted = set(self._subscriptions)
            if gone := channels - wanted:
                await pubsub.unsubscribe(*gone)
            if new := wanted - channels:
                await pubsub.subscribe(*new)
            channels = wanted

    async def _receive(self, pubsub: PubSub) -> None:
        pinged = False
        while still_running():
            message = await pubsub.get_message(timeout=SILENCE_S)
            if message is not None:
                pinged = False
                if message["type"] == "message":
                    self._distribute(message["channel"], message["data"])
            elif pinged:
                raise TimeoutError("the connection does not answer a ping")
            else:
                pinged = True
                await pubsub.ping()

    def _distribute(self, channel: str, data: str) -> None:
        subscriptions = self._subscriptions.get(channel)
        if not subscriptions:
            return
        try:
            message = decode(data)
        except (ValueError, KeyError, TypeError):
            log.warning("Ignoring a malformed realtime message")
            return
        for subscription in subscriptions:
            subscription.put(message)
