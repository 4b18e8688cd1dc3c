"""The depth of the broker's queues, and the age of their oldest message."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from celery import Celery

SENT_AT = "sent_at"
TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Depth:
    """One queue. `oldest_s`: the age of its oldest message, None if unknown. `consumers`: its number of workers, None if unknown."""

    messages: int
    oldest_s: float | None = None
    consumers: int | None = None


def add_sent_at(headers: dict[str, Any] | None = None, **_: object) -> None:
    """Add the time of sending to a task's headers. A receiver of Celery's `before_task_publish` signal."""
    if headers is not None:
        headers[SENT_AT] = time.time()


def depths(app: Celery, names: Sequence[str]) -> dict[str, Depth]:
    """Return the depths of the queues `names`, read on a connection of its own. A queue that does not exist counts as empty.

    Raises:
        kombu.exceptions.OperationalError: the broker does not answer.
    """
    with app.connection_for_read(connect_timeout=TIMEOUT_S) as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=TIMEOUT_S)
        with connection.channel() as channel:
            client = getattr(channel, "client", None)
            return {name: _on_redis(client, name) if client is not None else _on_amqp(connection, name) for name in names}


def _on_redis(client: Any, name: str) -> Depth:
    last = client.lindex(name, -1)  # producers push on the left, so the last is the oldest
    if last is None:
        return Depth(0)
    sent_at = None
    with contextlib.suppress(ValueError, AttributeError, RecursionError):  # an item need not be a message
        sent_at = json.loads(last).get("headers", {}).get(SENT_AT)
    return Depth(client.llen(name), max(0.0, time.time() - sent_at) if isinstance(sent_at, (int, float)) else None)


def _on_amqp(connection: Any, name: str) -> Depth:
    with connection.channel() as channel, contextlib.suppress(*connection.channel_errors):  # a queue that does not exist closes the channel
        declared = channel.queue_declare(name, passive=True)
        return Depth(declared.message_count, consumers=declared.consumer_count)
    return Depth(0)
