"""How many messages wait in the broker's queues, and for how long."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from celery import Celery

SENT_AT = "sent_at"
PATIENCE_S = 2.0


@dataclass(frozen=True, slots=True)
class Depth:
    """One queue. `oldest_s`: how long ago its oldest message was sent; None where the broker or the message does not tell.

    `consumers`: how many workers listen to it, where the broker tells.
    """

    messages: int
    oldest_s: float | None = None
    consumers: int | None = None


def say_when(headers: dict[str, Any] | None = None, **_: object) -> None:
    """Put into a task's headers when it is sent: a receiver of Celery's `before_task_publish`."""
    if headers is not None:
        headers[SENT_AT] = time.time()


def depths(app: Celery, names: Sequence[str]) -> dict[str, Depth]:
    """The queues of these names that can be asked for, on a connection of its own.

    Raises:
        kombu.exceptions.OperationalError: the broker does not answer.
    """
    with app.connection_for_read(connect_timeout=PATIENCE_S) as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=PATIENCE_S)
        with connection.channel() as channel:
            client = getattr(channel, "client", None)
            return {name: _on_redis(client, name) if client is not None else _on_amqp(connection, name) for name in names}


def _on_redis(client: Any, name: str) -> Depth:
    last = client.lindex(name, -1)  # messages are pushed on the left
    if last is None:
        return Depth(0)
    sent_at = None
    with contextlib.suppress(ValueError, AttributeError, RecursionError):  # anybody may push anything
        sent_at = json.loads(last).get("headers", {}).get(SENT_AT)
    return Depth(client.llen(name), max(0.0, time.time() - sent_at) if isinstance(sent_at, (int, float)) else None)


def _on_amqp(connection: Any, name: str) -> Depth:
    with connection.channel() as channel, contextlib.suppress(*connection.channel_errors):  # a refusal closes its channel
        told = channel.queue_declare(name, passive=True)
        return Depth(told.message_count, consumers=told.consumer_count)
    return Depth(0)
