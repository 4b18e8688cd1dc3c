"""Passing news over Valkey: "session S has news up to offset N", and the tokens of a reply as they stream.

News may be lost; nothing depends on it but how soon a reader looks. What counts is in the log. A text with a hole in it is worse than
one that comes whole a little later, so where a piece of a streamed reply is dropped, the rest of that attempt is dropped with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import redis.asyncio
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from failpoints import Point, reached

log = logging.getLogger(__name__)

FLUSH_S = 0.02
QUIET_S = 1.0  # before a Valkey that did not answer is asked again
TELL_S = 3.0  # for one flush, whatever the server does
SESSIONS = 10_000  # with something to tell that wait for a Valkey that does not answer
CHARS = 4 * 1024 * 1024  # of streamed text that wait for a flush
READER_CHARS = 256 * 1024  # of streamed text that wait for one reader
CUT = 10_000
SILENCE_S = 10.0  # of the connection, before it is asked whether it still stands
AWAY = (RedisError, OSError, TimeoutError)


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
    # Escaped: a piece may end within a surrogate pair, which UTF-8 cannot say.
    return json.dumps({"turn_id": str(piece.turn_id), "attempt": piece.attempt, "text": piece.text})


def _joined(last: News | Delta, piece: News | Delta) -> tuple[News | Delta, ...]:
    """The two as one, if the second goes on from the first."""
    if isinstance(last, News) and isinstance(piece, News):
        return (News(max(last.offset, piece.offset)),)
    if isinstance(last, Delta) and isinstance(piece, Delta) and (last.turn_id, last.attempt) == (piece.turn_id, piece.attempt):
        return (Delta(last.turn_id, last.attempt, last.text + piece.text),)
    return (last, piece)


def _connect(url: str, *, tries: int) -> redis.asyncio.Redis:
    # Not tried again after a timeout: a server that was only slow would tell the same piece twice.
    retry = Retry(NoBackoff(), tries - 1, supported_errors=(RedisConnectionError,))
    return redis.asyncio.Redis.from_url(
        url, socket_timeout=2, socket_connect_timeout=2, socket_keepalive=True, retry=retry, decode_responses=True
    )


def _still_running() -> bool:
    """True; raises CancelledError where the client library has swallowed a cancellation of the running task."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
    return True


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


class Wake:
    """Tells. `news` and `delta` return at once and never raise; what gathers within 20 ms goes out together, in the order told.

    For the loop it was opened on. With the url "" it tells nothing to nobody.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._waiting: dict[UUID, list[News | Delta]] = {}  # neighbours of a kind are one piece
        self._chars = 0
        self._cut: dict[tuple[UUID, int], None] = {}
        self._something = asyncio.Event()
        self._client: redis.asyncio.Redis | None = None
        self._flushing: asyncio.Task[None] | None = None
        self._away = False

    async def open(self) -> None:
        """Start telling, on the running loop. Waits for no server."""
        if self._url:
            self._client = _connect(self._url, tries=2)  # an idle connection may have been cut
            self._flushing = asyncio.get_running_loop().create_task(self._flush_for_ever(self._client), name="wake")

    async def close(self) -> None:
        """Tell what is left and stop."""
        client, self._client = self._client, None
        if self._flushing is not None and client is not None:
            self._flushing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._flushing
            if not self._away:
                await self._flush(client)
            await client.aclose()

    def news(self, session_id: UUID, offset: int) -> None:
        """Tell that the session's log has grown to `offset`."""
        self._put(session_id, News(offset))

    def delta(self, session_id: UUID, turn_id: UUID, attempt: int, text: str) -> None:
        """Tell a piece of the reply being streamed."""
        if self._client is None or (turn_id, attempt) in self._cut:
            return
        if self._away or self._chars + len(text) > CHARS or (session_id not in self._waiting and len(self._waiting) >= SESSIONS):
            self._cut_off((turn_id, attempt))
            self._waiting = self._without_deltas(self._waiting)
            self._chars = 0
        else:
            self._chars += len(text)
            self._put(session_id, Delta(turn_id, attempt, text))
            reached(Point.C21)

    def _put(self, session_id: UUID, piece: News | Delta) -> None:
        if self._client is not None and (session_id in self._waiting or len(self._waiting) < SESSIONS):
            pieces = self._waiting.setdefault(session_id, [])
            pieces[-1:] = _joined(pieces[-1], piece) if pieces else (piece,)
            self._something.set()

    def _without_deltas(self, waiting: dict[UUID, list[News | Delta]]) -> dict[UUID, list[News | Delta]]:
        """The news of `waiting`, in one piece per session; the replies whose deltas it held are cut off."""
        self._cut_off(*{(piece.turn_id, piece.attempt) for pieces in waiting.values() for piece in pieces if isinstance(piece, Delta)})
        offsets = {session_id: [piece.offset for piece in pieces if isinstance(piece, News)] for session_id, pieces in waiting.items()}
        return {session_id: [News(max(several))] for session_id, several in offsets.items() if several}

    def _cut_off(self, *replies: tuple[UUID, int]) -> None:
        self._cut |= dict.fromkeys(replies)
        while len(self._cut) > CUT:
            del self._cut[next(iter(self._cut))]

    async def _flush_for_ever(self, client: redis.asyncio.Redis) -> None:
        while _still_running():
            await self._something.wait()
            await asyncio.sleep(FLUSH_S)
            self._something.clear()
            await self._flush(client)
            while self._away and _still_running():
                await asyncio.sleep(QUIET_S)
                await self._flush(client)

    async def _flush(self, client: redis.asyncio.Redis) -> None:
        waiting, self._waiting, self._chars = self._waiting, {}, 0
        if not waiting and not self._away:
            return
        try:
            async with asyncio.timeout(TELL_S), client.pipeline(transaction=False) as pipe:
                pipe.ping()
                for session_id, pieces in waiting.items():
                    for piece in pieces:
                        pipe.publish(_channel(session_id), _spelt(piece))
                await pipe.execute()
        except AWAY as error:
            if not self._away:
                log.warning("passing news cannot be told (%s); readers look at the log every now and then", type(error).__name__)
            self._away = True
            newer, self._waiting = self._without_deltas(self._waiting), self._without_deltas(waiting)
            for session_id, pieces in newer.items():
                self._put(session_id, pieces[0])
            self._chars = 0
            return
        if self._away:
            log.info("passing news can be told again")
        self._away = False


class Watch:
    """One reader's news of one session. A reader that falls behind loses tokens, never the news that there is something in the log."""

    def __init__(self) -> None:
        self._pieces: deque[News | Delta] = deque()
        self._chars = 0
        self._cut: tuple[UUID, int] | None = None
        self._some = asyncio.Event()

    async def next(self, timeout_s: float) -> News | Delta | None:
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

    def put(self, piece: News | Delta) -> None:
        """Hand over a piece; joined to the last one where it goes on from there."""
        if isinstance(piece, Delta):
            if self._cut == (piece.turn_id, piece.attempt):
                return
            if self._chars + len(piece.text) > READER_CHARS:
                self._cut = (piece.turn_id, piece.attempt)
                offsets = [kept.offset for kept in self._pieces if isinstance(kept, News)]
                self._pieces = deque([News(max(offsets))] if offsets else ())
                self._chars = 0
                return
            self._chars += len(piece.text)
        if self._pieces:
            self._pieces.extend(_joined(self._pieces.pop(), piece))
        else:
            self._pieces.append(piece)
        self._some.set()


class Listener:
    """Listens, for all readers of a process, over one connection. With the url "" nobody hears anything, but for `nudge`."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._watches: dict[str, set[Watch]] = {}
        self._changed = asyncio.Event()
        self._client: redis.asyncio.Redis | None = None
        self._listening: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start listening, on the running loop. Waits for no server."""
        if self._url:
            self._client = _connect(self._url, tries=1)  # a new connection is ours to notice: something was missed
            self._listening = asyncio.get_running_loop().create_task(self._listen_for_ever(self._client), name="listener")

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
        self._changed.set()
        try:
            yield watch
        finally:
            watches.discard(watch)
            if not watches and self._watches.get(channel) is watches:
                del self._watches[channel]
                self._changed.set()

    def nudge(self) -> None:
        """Make every reader look at its log now."""
        for watches in self._watches.values():
            for watch in watches:
                watch.put(News(-1))

    async def _listen_for_ever(self, client: redis.asyncio.Redis) -> None:
        heard = True
        while _still_running():
            try:
                async with client.pubsub() as pubsub:
                    followed = set(self._watches)
                    await pubsub.subscribe("turnline:listeners", *followed)
                    self.nudge()  # something may have been said while nobody listened
                    heard = True
                    await _until_one_ends(self._follow(pubsub, followed), self._hear(pubsub))
            except Exception as error:  # noqa: BLE001 - whatever happened, the next connection may do better
                if heard:
                    log.warning("passing news cannot be heard (%s); the log is looked at now and then", type(error).__name__)
                heard = False
            self.nudge()
            await asyncio.sleep(QUIET_S)

    async def _follow(self, pubsub: PubSub, followed: set[str]) -> None:
        """Keep the connection's channels those that are watched; the one place that changes them, so that they end up right."""
        while _still_running():
            await self._changed.wait()
            self._changed.clear()
            wanted = set(self._watches)
            if gone := followed - wanted:
                await pubsub.unsubscribe(*gone)
            if new := wanted - followed:
                await pubsub.subscribe(*new)
            followed = wanted

    async def _hear(self, pubsub: PubSub) -> None:
        asked = False
        while _still_running():
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
        watches = self._watches.get(channel)
        if not watches:
            return
        try:
            said = json.loads(data)
            piece = News(said) if isinstance(said, int) else Delta(UUID(said["turn_id"]), int(said["attempt"]), str(said["text"]))
        except (ValueError, KeyError, TypeError):
            log.warning("news that is none was dropped")
            return
        for watch in watches:
            watch.put(piece)
