"""Publishes a session's progress to its readers, over Redis or Valkey."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from uuid import UUID

import redis.asyncio
from redis.exceptions import RedisError

from failpoints import failpoint
from realtime.messages import RETRY_S, Delta, LogAdvanced, channel_of, connect, encode, merge, still_running

log = logging.getLogger(__name__)

FLUSH_S = 0.02
FLUSH_TIMEOUT_S = 3.0
MAX_SESSIONS = 10_000  # with messages waiting while the server does not answer
MAX_CHARS = 4 * 1024 * 1024  # of streamed text waiting for a flush
MAX_CUT = 10_000
AWAY = (RedisError, OSError, TimeoutError)


class Publisher:
    """Publishes to the readers of sessions. `log_advanced` and `token_delta` return at once and never raise.

    What gathers within 20 ms goes out together, in order. Use it on the loop that opened it. With the URL "" it publishes nothing.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._waiting: dict[UUID, list[LogAdvanced | Delta]] = {}  # neighbours of a kind are one piece
        self._chars = 0
        self._cut: dict[tuple[UUID, int], None] = {}
        self._something = asyncio.Event()
        self._client: redis.asyncio.Redis | None = None
        self._flushing: asyncio.Task[None] | None = None
        self._away = False

    async def open(self) -> None:
        """Start telling, on the running loop. Waits for no server."""
        if self._url:
            self._client = connect(self._url, tries=2)  # an idle connection may have been cut
            self._flushing = asyncio.get_running_loop().create_task(self._flush_for_ever(self._client), name="publisher")

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

    def log_advanced(self, session_id: UUID, offset: int) -> None:
        """Tell that the session's log has grown to `offset`."""
        self._put(session_id, LogAdvanced(offset))

    def token_delta(self, session_id: UUID, turn_id: UUID, attempt: int, text: str) -> None:
        """Tell a piece of the reply being streamed."""
        if self._client is None or (turn_id, attempt) in self._cut:
            return
        if self._away or self._chars + len(text) > MAX_CHARS or (session_id not in self._waiting and len(self._waiting) >= MAX_SESSIONS):
            self._cut_off((turn_id, attempt))
            self._waiting = self._without_deltas(self._waiting)
            self._chars = 0
        else:
            self._chars += len(text)
            self._put(session_id, Delta(turn_id, attempt, text))
            failpoint("model_call.delta")

    def _put(self, session_id: UUID, piece: LogAdvanced | Delta) -> None:
        if self._client is not None and (session_id in self._waiting or len(self._waiting) < MAX_SESSIONS):
            pieces = self._waiting.setdefault(session_id, [])
            pieces[-1:] = merge(pieces[-1], piece) if pieces else (piece,)
            self._something.set()

    def _without_deltas(self, waiting: dict[UUID, list[LogAdvanced | Delta]]) -> dict[UUID, list[LogAdvanced | Delta]]:
        """The news of `waiting`, in one piece per session; the replies whose deltas it held are cut off."""
        self._cut_off(*{(piece.turn_id, piece.attempt) for pieces in waiting.values() for piece in pieces if isinstance(piece, Delta)})
        offsets = {
            session_id: [piece.offset for piece in pieces if isinstance(piece, LogAdvanced)] for session_id, pieces in waiting.items()
        }
        return {session_id: [LogAdvanced(max(several))] for session_id, several in offsets.items() if several}

    def _cut_off(self, *replies: tuple[UUID, int]) -> None:
        self._cut |= dict.fromkeys(replies)
        while len(self._cut) > MAX_CUT:
            del self._cut[next(iter(self._cut))]

    async def _flush_for_ever(self, client: redis.asyncio.Redis) -> None:
        while still_running():
            await self._something.wait()
            await asyncio.sleep(FLUSH_S)
            self._something.clear()
            await self._flush(client)
            while self._away and still_running():
                await asyncio.sleep(RETRY_S)
                await self._flush(client)

    async def _flush(self, client: redis.asyncio.Redis) -> None:
        waiting, self._waiting, self._chars = self._waiting, {}, 0
        if not waiting and not self._away:
            return
        try:
            async with asyncio.timeout(FLUSH_TIMEOUT_S), client.pipeline(transaction=False) as pipe:
                pipe.ping()
                for session_id, pieces in waiting.items():
                    for piece in pieces:
                        pipe.publish(channel_of(session_id), encode(piece))
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
