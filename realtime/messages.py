"""Realtime messages about a session: its log advanced, or a piece of a reply was streamed.

They travel over Redis or Valkey pub/sub and may be lost. The log is the truth, so a lost message only costs a reader time. A reply with
a gap in it would be worse than one that arrives whole and later, so when a delta is dropped, the rest of its attempt is dropped too.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TypeAlias
from uuid import UUID

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

RETRY_S = 1.0  # between attempts to reach a server that did not answer

Message: TypeAlias = "LogAdvanced | Delta"


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


def encode(message: Message) -> str:
    """Return `message` as it is published."""
    if isinstance(message, LogAdvanced):
        return str(message.offset)
    # ASCII-escaped: a delta may end within a surrogate pair, which UTF-8 cannot encode.
    return json.dumps({"turn_id": str(message.turn_id), "attempt": message.attempt, "text": message.text})


def decode(data: str) -> Message:
    """Return the message that was published as `data`.

    Raises:
        ValueError, KeyError, TypeError: `data` is not a message.
    """
    value = json.loads(data)
    if isinstance(value, int):
        return LogAdvanced(value)
    return Delta(UUID(value["turn_id"]), int(value["attempt"]), str(value["text"]))


def merge(last: Message, following: Message) -> tuple[Message, ...]:
    """Return the two as one if the second continues the first."""
    if isinstance(last, LogAdvanced) and isinstance(following, LogAdvanced):
        return (LogAdvanced(max(last.offset, following.offset)),)
    if isinstance(last, Delta) and isinstance(following, Delta) and (last.turn_id, last.attempt) == (following.turn_id, following.attempt):
        return (Delta(last.turn_id, last.attempt, last.text + following.text),)
    return (last, following)


def connect(url: str, *, tries: int) -> redis.asyncio.Redis:
    """Return a client that makes up to `tries` attempts to connect."""
    # No retry after a timeout: a server that was only slow would deliver the same message twice.
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
