"""Inspect and empty the broker's queues, as its operator would."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import redis
from celery import Celery

from settings import Settings
from tasks.celery_app import QUEUES, make_app


class Queues:
    """The product's queues on the broker at `url`, accessed without a proxy."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.on_valkey = url.startswith("redis")
        self.app: Celery = make_app(Settings(_env_file=None, DATABASE_URL="", CELERY_BROKER_URL=url))

    def close(self) -> None:
        """Close the connections."""
        self.app.close()

    def waiting(self) -> int:
        """Return the number of messages in the queues."""
        if self.on_valkey:
            with self._valkey() as client:
                return sum(int(client.llen(name)) for name in QUEUES)
        with self.app.connection_for_read() as connection:
            return sum(int(connection.default_channel.queue_declare(name, passive=True).message_count) for name in QUEUES)

    def unacknowledged(self) -> int:
        """Return the number of delivered messages that Valkey keeps until they are acknowledged; always 0 on RabbitMQ."""
        if not self.on_valkey:
            return 0
        with self._valkey() as client:
            return int(client.hlen("unacked"))

    def empty(self) -> int:
        """Delete all messages, on Valkey with FLUSHALL. Return how many were in the queues."""
        if self.on_valkey:
            count = self.waiting()
            with self._valkey() as client:
                client.flushall()
            return count
        with self.app.connection_for_write() as connection:
            return sum(int(connection.default_channel.queue_purge(name)) for name in QUEUES)

    @contextlib.contextmanager
    def _valkey(self) -> Iterator[Any]:
        with redis.Redis.from_url(self.url) as client:
            yield client
