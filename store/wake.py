"""Passing news over Valkey: "session S has news up to offset N", and the tokens of a reply as they stream.

News may be lost; nothing depends on it but how soon a reader looks. What counts is in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

import redis.asyncio
from redis.exceptions import RedisError

log = logging.getLogger(__name__)

FLUSH_S = 0.02
BOUND = 10_000  # sessions with something to tell that wait for a Valkey that does not answer
PIECES = 1_000  # waiting for one reader; a reader that does not keep up loses tokens, never log lines
QUIET_S = 1.0


@dataclass(frozen=True, slots=True)
class News:
    """The session's log has grown to `offset`, or (-1) may have grown: look."""

    offset: int


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of the reply that a turn's `attempt`-th claim is streaming. A piece of a greater attempt voids those of smaller ones."""

    turn_id: UUID
    attempt: int
    text: str


def _channel(session_id: UUID) -> str:
    return f"turnline:session:{session_id}"


def _spelt(piece: News | Delta) -> str:
    if isinstance(piece, News):
        return str(piece.offset)
    return json.dumps({"turn_id": str(piece.turn_id), "attempt": piece.attempt, "text": piece.text})


def _connect(url: str) -> redis.asyncio.Redis:
    return redis.asyncio.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2, decode_responses=True)


class Wake:
    """Tells. `news` and `delta` return at once and never raise; what gathers within 20 ms goes out together."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._waiting: dict[UUID, list[News | Delta]] = {}  # per session, in the order told; neighbours of a kind are one piece
        self._something = asyncio.Event()
        self._client: redis.asyncio.Redis | None = None
        self._flushing: asyncio.Task[None] | None = None
        self._silent = False

    async def open(self) -> None:
        """Start telling, on the running loop. Waits for no server."""
        if self._url:
            self._client = _connect(self._url)
            self._flushing = asyncio.get_running_loop().create_task(self._flush_for_ever(), name="wake")

    async def close(self) -> None:
        """Tell what is left and stop."""
        if self._flushing is not None and self._client is not None:
            self._flushing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._flushing
            await self._flush(self._client)
            await self._client.aclose()

    def news(self, session_id: UUID, offset: int) -> None:
        """Tell that the session's log has grown to `offset`."""
        self._tell(session_id, News(offset))

    def delta(self, session_id: UUID, turn_id: UUID, attempt: int, text: str) -> None:
        """Tell a piece of the reply being streamed."""
        self._tell(session_id, Delta(turn_id, attempt, text))

    def _tell(self, session_id: UUID, piece: News | Delta) -> None:
        if self._client is None or (session_id not in self._waiting and len(self._waiting) >= BOUND):
            return
        pieces = self._waiting.setdefault(session_id, [])
        match pieces[-1:], piece:
            case [News(before)], News(offset):
                pieces[-1] = News(max(before, offset))
            case [Delta(turn_id, attempt, text)], Delta() if (turn_id, attempt) == (piece.turn_id, piece.attempt):
                pieces[-1] = Delta(turn_id, attempt, text + piece.text)
            case _:
                pieces.append(piece)
        self._something.set()

    async def _flush_for_ever(self) -> None:
        assert self._client is not None  # noqa: S101 - open() made it
        while True:
            await self._something.wait()
            await asyncio.sleep(FLUSH_S)
            self._something.clear()
            if not await self._flush(self._client):
                await asyncio.sleep(QUIET_S)

    async def _flush(self, client: redis.asyncio.Redis) -> bool:
        waiting, self._waiting = self._waiting, {}
        if not waiting:
            return True
        try:
            async with client.pipeline(transaction=False) as pipe:
                for session_id, pieces in waiting.items():
                    for piece in pieces:
                        pipe.publish(_channel(session_id), _spelt(piece))
                await pipe.execute()
        except (RedisError, OSError, TimeoutError) as error:
            if not self._silent:
                log.warning("passing news cannot be told (%s); readers look at the log every now and then", type(error).__name__)
            self._silent = True
            return False
        self._silent = False
        return True


class Watch:
    """One reader's news of one session."""

    def __init__(self) -> None:
        self._pieces: asyncio.Queue[News | Delta] = asyncio.Queue(PIECES)

    async def next(self, timeout_s: float) -> News | Delta | None:
        """The next piece of news, or None when there was none for `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._pieces.get()
        except TimeoutError:
            return None

    def put(self, piece: News | Delta) -> None:
        """Hand over a piece; dropped where the reader has fallen far behind."""
        with contextlib.suppress(asyncio.QueueFull):
            self._pieces.put_nowait(piece)


class Listener:
    """Listens, for all readers of a process, over one connection."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._watches: dict[str, set[Watch]] = {}
        self._client: redis.asyncio.Redis | None = None
        self._pubsub: redis.asyncio.client.PubSub | None = None
        self._listening: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start listening, on the running loop. Waits for no server."""
        if self._url:
            self._client = _connect(self._url)
            self._listening = asyncio.get_running_loop().create_task(self._listen_for_ever(), name="listener")

    async def close(self) -> None:
        """Stop listening."""
        if self._listening is not None and self._client is not None:
            self._listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._listening
            await self._client.aclose()

    @asynccontextmanager
    async def watch(self, session_id: UUID) -> AsyncIterator[Watch]:
        """The session's news from now on. What happened before, and what gets lost on the way, is in the log."""
        channel, watch = _channel(session_id), Watch()
        watches = self._watches.setdefault(channel, set())
        watches.add(watch)
        if len(watches) == 1:
            await self._follow(channel, on=True)
        try:
            yield watch
        finally:
            watches.discard(watch)
            if not watches and self._watches.get(channel) is watches:
                del self._watches[channel]
                await self._follow(channel, on=False)

    async def _follow(self, channel: str, *, on: bool) -> None:
        if self._pubsub is None:
            return  # the listener follows every watched channel when it connects
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            await (self._pubsub.subscribe(channel) if on else self._pubsub.unsubscribe(channel))

    async def _listen_for_ever(self) -> None:
        assert self._client is not None  # noqa: S101 - open() made it
        while True:
            try:
                async with self._client.pubsub() as pubsub:
                    await pubsub.subscribe("turnline:listeners", *self._watches)
                    self._pubsub = pubsub
                    self._tell_all(News(-1))  # something may have been said while nobody listened
                    while True:
                        message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=30)
                        if message is not None:
                            self._hand_over(message["channel"], message["data"])
            except (RedisError, OSError, TimeoutError):
                self._pubsub = None
                self._tell_all(News(-1))
                await asyncio.sleep(QUIET_S)

    def _hand_over(self, channel: str, data: str) -> None:
        watches = self._watches.get(channel)
        if not watches:
            return
        try:
            said = json.loads(data)
            piece = News(said) if isinstance(said, int) else Delta(UUID(said["turn_id"]), said["attempt"], said["text"])
        except (ValueError, KeyError, TypeError):
            log.warning("news that is none was dropped")
            return
        for watch in watches:
            watch.put(piece)

    def nudge(self) -> None:
        """Make every reader look at its log now."""
        self._tell_all(News(-1))

    def _tell_all(self, piece: News) -> None:
        for watches in self._watches.values():
            for watch in watches:
                watch.put(piece)
