"""Publishes the progress of sessions to their readers, over Redis or Valkey."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from uuid import UUID

import redis.asyncio
from redis.exceptions import RedisError

from failpoints import failpoint
from realtime.messages import RETRY_S, Delta, LogAdvanced, Message, channel_of, connect, encode, merge, still_running

log = logging.getLogger(__name__)

FLUSH_S = 0.02
FLUSH_TIMEOUT_S = 3.0
MAX_SESSIONS = 10_000  # with queued messages while the server does not answer
MAX_CHARS = 4 * 1024 * 1024  # of streamed text waiting for a flush
MAX_TRUNCATED = 10_000  # streamed replies remembered because a part of them was dropped
UNAVAILABLE = (RedisError, OSError, TimeoutError)


class Publisher:
    """Publishes to the readers of sessions. `log_advanced` and `token_delta` return at once and never raise.

    Messages of the same 20 ms are sent together, in order. Use it on the event loop that opened it. With the URL "" it publishes nothing.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._queued: dict[UUID, list[Message]] = {}  # neighbours of the same kind are merged
        self._chars = 0
        self._truncated: dict[tuple[UUID, int], None] = {}
        self._has_queued = asyncio.Event()
        self._client: redis.asyncio.Redis | None = None
        self._flushing: asyncio.Task[None] | None = None
        self._unavailable = False

    async def open(self) -> None:
        """Start publishing on the running loop. Does not wait for the server."""
        if self._url:
            self._client = connect(self._url, tries=2)  # an idle connection may have been cut
            self._flushing = asyncio.get_running_loop().create_task(self._flush_for_ever(self._client), name="publisher")

    async def close(self) -> None:
        """Publish what is queued and stop."""
        client, self._client = self._client, None
        if self._flushing is not None and client is not None:
            self._flushing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._flushing
            if not self._unavailable:
                await self._flush(client)
            await client.aclose()

    def log_advanced(self, session_id: UUID, offset: int) -> None:
        """Publish that the session's log has grown to `offset`."""
        self._put(session_id, LogAdvanced(offset))

    def token_delta(self, session_id: UUID, turn_id: UUID, attempt: int, text: str) -> None:
        """Publish a piece of the reply that the turn streams."""
        if self._client is None or (turn_id, attempt) in self._truncated:
            return
        too_many_sessions = session_id not in self._queued and len(self._queued) >= MAX_SESSIONS
        if self._unavailable or self._chars + len(text) > MAX_CHARS or too_many_sessions:
            self._truncate((turn_id, attempt))
            self._queued = self._without_deltas(self._queued)
            self._chars = 0
        else:
            self._chars += len(text)
            self._put(session_id, Delta(turn_id, attempt, text))
            failpoint("model_call.delta")

    def _put(self, session_id: UUID, message: Message) -> None:
        if self._client is not None and (session_id in self._queued or len(self._queued) < MAX_SESSIONS):
            messages = self._queued.setdefault(session_id, [])
            messages[-1:] = merge(messages[-1], message) if messages else (message,)
            self._has_queued.set()

    def _without_deltas(self, queued: dict[UUID, list[Message]]) -> dict[UUID, list[Message]]:
        """Return the greatest offset of each session in `queued`; the replies whose deltas it held are truncated."""
        deltas = {(one.turn_id, one.attempt) for messages in queued.values() for one in messages if isinstance(one, Delta)}
        self._truncate(*deltas)
        offsets = {session_id: [one.offset for one in messages if isinstance(one, LogAdvanced)] for session_id, messages in queued.items()}
        return {session_id: [LogAdvanced(max(several))] for session_id, several in offsets.items() if several}

    def _truncate(self, *replies: tuple[UUID, int]) -> None:
        """Drop all further deltas of these (turn, attempt) pairs."""
        self._truncated |= dict.fromkeys(replies)
        while len(self._truncated) > MAX_TRUNCATED:
            del self._truncated[next(iter(self._truncated))]

    async def _flush_for_ever(self, client: redis.asyncio.Redis) -> None:
        while still_running():
            await self._has_queued.wait()
            await asyncio.sleep(FLUSH_S)
            self._has_queued.clear()
            await self._flush(client)
            while self._unavailable and still_running():
                await asyncio.sleep(RETRY_S)
                await self._flush(client)

    async def _flush(self, client: redis.asyncio.Redis) -> None:
        sending, self._queued, self._chars = self._queued, {}, 0
        if not sending and not self._unavailable:
            return
        try:
            async with asyncio.timeout(FLUSH_TIMEOUT_S), client.pipeline(transaction=False) as pipe:
                pipe.ping()
                for session_id, messages in sending.items():
                    for message in messages:
                        pipe.publish(channel_of(session_id), encode(message))
                await pipe.execute()
        except UNAVAILABLE as error:
            if not self._unavailable:
                log.warning("Publishing realtime messages failed (%s); readers poll the log until it works again", type(error).__name__)
            self._unavailable = True
            newer, self._queued = self._without_deltas(self._queued), self._without_deltas(sending)
            for session_id, messages in newer.items():
                self._put(session_id, messages[0])
            self._chars = 0
            return
        if self._unavailable:
            log.info("Publishing realtime messages works again")
        self._unavailable = False
