"""Removing messages of deleted sessions from the broker.

A worker that receives a message for a deleted session drops it. This module removes those that no worker receives, because none is
running or because they are dead letters.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
from collections.abc import Collection, Iterator
from typing import Any
from uuid import UUID

from celery import Celery

from worker.dead_letters import DELIVERY_LIMIT, dead_letters_of

QUEUE = "messages"
PAGE = 500
PRIORITIES = ("", "\x06\x163", "\x06\x166", "\x06\x169")  # suffixes of the Redis lists that kombu uses for one queue
UNACKED, UNACKED_INDEX = "unacked", "unacked_index"
DELIVERIES = "x-delivery-count"
DEFAULT_DELIVERY_LIMIT = 20  # of RabbitMQ's quorum queues, since 4.0
DELIVERY_MARGIN = 4


def purge(app: Celery, sessions: Collection[UUID], *, dry_run: bool = False) -> dict[str, int]:
    """Remove the messages of `sessions` from the broker, and return how many were removed from each queue. With `dry_run`, only count.

    On RabbitMQ every message of the queue is received and returned, which counts as one delivery. If that could exceed a message's
    delivery limit, a copy is published in its place; accepting a repeated message twice has no effect.

    Raises the errors of the broker's client if the broker cannot be reached.
    """
    wanted = set(sessions)
    with app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0.2)
        if connection.transport.driver_type == "redis":
            return _from_redis(connection.default_channel.client, wanted, dry_run)
        return _from_rabbitmq(connection, wanted, dry_run)


def session_of(body: Any) -> UUID | None:
    """Return the session that an encoded task body is for, or None if it is not a message for a session."""
    try:
        if isinstance(body, (bytes, memoryview)):
            body = bytes(body).decode()
        decoded = json.loads(body)
        args, kwargs = (decoded["args"], decoded["kwargs"]) if isinstance(decoded, dict) else decoded[:2]
        return UUID(kwargs["session_id"] if "session_id" in kwargs else args[0])
    except (ValueError, TypeError, LookupError, AttributeError):
        return None


def _from_redis(client: Any, wanted: set[UUID], dry_run: bool) -> dict[str, int]:
    removed = {QUEUE: 0, UNACKED: 0}
    for key in (f"{QUEUE}{priority}" for priority in PRIORITIES):
        found = [raw for raw in _elements(client, key) if _session_in(raw) in wanted]
        removed[QUEUE] += len(found) if dry_run else sum(int(client.lrem(key, 1, raw)) for raw in found)
    # Messages that a worker has received, or had received when it died; the latter would be delivered again.
    for tag, raw in client.hscan_iter(UNACKED, count=PAGE):
        with contextlib.suppress(ValueError, TypeError, LookupError):
            if _session_in(json.loads(raw)[0]) in wanted:
                removed[UNACKED] += 1
                if not dry_run:
                    client.hdel(UNACKED, tag)
                    client.zrem(UNACKED_INDEX, tag)
    return {name: count for name, count in removed.items() if count}


def _elements(client: Any, key: str) -> Iterator[bytes]:
    """Yield the list's elements once each. New ones are added at its head, so reading towards its tail misses none."""
    seen: set[bytes] = set()
    first = 0
    while page := client.lrange(key, first, first + PAGE - 1):
        for raw in page:
            if raw not in seen:
                seen.add(raw)
                yield raw
        first += PAGE


def _session_in(raw: Any) -> UUID | None:
    with contextlib.suppress(ValueError, TypeError, LookupError, AttributeError, binascii.Error):
        message = json.loads(raw) if isinstance(raw, (bytes, str)) else raw
        body = message["body"]
        return session_of(base64.b64decode(body) if message["properties"].get("body_encoding") == "base64" else body)
    return None


def _from_rabbitmq(connection: Any, wanted: set[UUID], dry_run: bool) -> dict[str, int]:
    removed: dict[str, int] = {}
    for queue, limit in ((QUEUE, DELIVERY_LIMIT), (dead_letters_of(QUEUE), DEFAULT_DELIVERY_LIMIT)):
        channel = connection.channel()
        try:
            republish = False
            for _ in range(channel.queue_declare(queue, passive=True).message_count):
                message = channel.basic_get(queue, no_ack=False)
                if message is None:
                    break
                headers = message.headers or {}
                republish = republish or headers.get(DELIVERIES, 0) >= limit - DELIVERY_MARGIN
                if session_of(message.body) in wanted:
                    removed[queue] = removed.get(queue, 0) + 1
                    if not dry_run:
                        channel.basic_ack(message.delivery_tag)
                        continue
                if republish:  # this message and those behind it, so that their order is kept
                    message.properties["application_headers"] = {name: value for name, value in headers.items() if name != DELIVERIES}
                    channel.basic_publish(message, exchange="", routing_key=queue)
                    channel.basic_ack(message.delivery_tag)
        except connection.channel_errors:  # the queue does not exist
            continue
        finally:  # closing the channel returns unacknowledged messages, in order
            with contextlib.suppress(*connection.channel_errors, *connection.connection_errors):
                channel.close()
    return removed
