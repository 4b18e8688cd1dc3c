"""Messages that tell readers about a session: its log advanced, or a piece of a reply is being streamed.

They travel over Redis or Valkey pub/sub and may be lost; the log is the truth, and a lost message costs a reader only time. A reply
with a gap in it would be worse than one that arrives whole and later, so when a delta is dropped, the rest of its attempt is dropped too.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from uuid import UUID

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

RETRY_S = 1.0  # between attempts to reach a server that did not answer


@dataclass(frozen=True, slots=True)
class LogAdvanced:
    """The session's log advanced to `offset`; -1 means that it may have advanced, so read it."""

    offset: int


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of the reply that the turn's claim number `attempt` streams. A later attempt replaces the pieces of earlier ones."""

    turn_id: UUID
    attempt: int
    text: str


def channel_of(session_id: UUID) -> str:
    """Return the pub/sub channel of a session."""
    return f"turnline:session:{session_id}"


def encode(piece: LogAdvanced | Delta) -> str:
    """Return `piece` as it is published."""
    if isinstance(piece, LogAdvanced):
        return str(piece.offset)
    # ASCII-escaped: a piece may end within a surrogate pair, which UTF-8 cannot encode.
    return json.dumps({"turn_id": str(piece.turn_id), "attempt": piece.attempt, "text": piece.text})


def merge(last: LogAdvanced | Delta, piece: LogAdvanced | Delta) -> tuple[LogAdvanced | Delta, ...]:
    """Return the two as one if the second continues the first."""
    if isinstance(last, LogAdvanced) and isinstance(piece, LogAdvanced):
        return (LogAdvanced(max(last.offset, piece.offset)),)
    if isinstance(last, Delta) and isinstance(piece, Delta) and (last.turn_id, last.attempt) == (piece.turn_id, piece.attempt):
        return (Delta(last.turn_id, last.attempt, last.text + piece.text),)
    return (last, piece)


def connect(url: str, *, tries: int) -> redis.asyncio.Redis:
    """Return a client that makes up to `tries` attempts to connect."""
    # No retry after a timeout: a server that was only slow would deliver the same piece twice.
    retry = Retry(NoBackoff(), tries - 1, supported_errors=(RedisConnectionError,))
    return redis.asyncio.Redis.from_url(
        url, socket_timeout=2, socket_connect_timeout=2, socket_keepalive=True, retry=retry, decode_responses=True
    )


def still_running() -> bool:
    """Return True; raise CancelledError if the client library swallowed a cancellation of the running task."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
    return True
