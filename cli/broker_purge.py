"""Messages of customers that still wait in the broker, and taking out those of sessions that are gone.

A message for a session that is gone is dropped by the worker that gets it. This is for those that no worker gets: none is running, or
they lie among the dead letters.
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
PRIORITIES = ("", "\x06\x163", "\x06\x166", "\x06\x169")  # kombu's lists of one queue, as its Redis transport names them
UNACKED, UNACKED_INDEX = "unacked", "unacked_index"
DELIVERIES = "x-delivery-count"
LIMIT_BY_DEFAULT = 20  # of RabbitMQ's quorum queues, since 4.0
MARGIN = 4


def take_out(app: Celery, sessions: Collection[UUID], *, dry_run: bool = False) -> dict[str, int]:
    """Take the messages of `sessions` out of the broker; how many from where. With `dry_run`, count them.

    On RabbitMQ the queue's messages are taken and given back, which counts as one delivery of each. Where that might make dead letters of
    them, copies are sent in their place: a repeated message is accepted once.

    Raises what the broker's client raises where it cannot be reached.
    """
    wanted = set(sessions)
    with app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0.2)
        if connection.transport.driver_type == "redis":
            return _from_redis(connection.default_channel.client, wanted, dry_run)
        return _from_rabbitmq(connection, wanted, dry_run)


def session_of(body: Any) -> UUID | None:
    """The session that a task's body, still encoded, is for; None where it is no message for a session."""
    try:
        if isinstance(body, (bytes, memoryview)):
            body = bytes(body).decode()
        decoded = json.loads(body)
        args, kwargs = (decoded["args"], decoded["kwargs"]) if isinstance(decoded, dict) else decoded[:2]
        return UUID(kwargs["session_id"] if "session_id" in kwargs else args[0])
    except (ValueError, TypeError, LookupError, AttributeError):
        return None


def _from_redis(client: Any, wanted: set[UUID], dry_run: bool) -> dict[str, int]:
    taken = {QUEUE: 0, UNACKED: 0}
    for key in (f"{QUEUE}{priority}" for priority in PRIORITIES):
        found = [raw for raw in _elements(client, key) if _session_in(raw) in wanted]
        taken[QUEUE] += len(found) if dry_run else sum(int(client.lrem(key, 1, raw)) for raw in found)
    # With a worker, or with one that has died and whose messages would come back.
    for tag, raw in client.hscan_iter(UNACKED, count=PAGE):
        with contextlib.suppress(ValueError, TypeError, LookupError):
            if _session_in(json.loads(raw)[0]) in wanted:
                taken[UNACKED] += 1
                if not dry_run:
                    client.hdel(UNACKED, tag)
                    client.zrem(UNACKED_INDEX, tag)
    return {where: count for where, count in taken.items() if count}


def _elements(client: Any, key: str) -> Iterator[bytes]:
    """The list's elements. New ones come in at its head, so that going towards its tail misses none and may see one twice."""
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
    taken: dict[str, int] = {}
    for queue, limit in ((QUEUE, DELIVERY_LIMIT), (dead_letters_of(QUEUE), LIMIT_BY_DEFAULT)):
        channel = connection.channel()
        try:
            again = False
            for _ in range(channel.queue_declare(queue, passive=True).message_count):
                message = channel.basic_get(queue, no_ack=False)
                if message is None:
                    break
                headers = message.headers or {}
                again = again or headers.get(DELIVERIES, 0) >= limit - MARGIN
                if session_of(message.body) in wanted:
                    taken[queue] = taken.get(queue, 0) + 1
                    if not dry_run:
                        channel.basic_ack(message.delivery_tag)
                        continue
                if again:  # it and those behind it, so that they stay in their order
                    message.properties["application_headers"] = {name: value for name, value in headers.items() if name != DELIVERIES}
                    channel.basic_publish(message, exchange="", routing_key=queue)
                    channel.basic_ack(message.delivery_tag)
        except connection.channel_errors:  # there is no such queue
            continue
        finally:  # gives back what is held, in its order
            with contextlib.suppress(*connection.channel_errors, *connection.connection_errors):
                channel.close()
    return taken
