"""The broker's queues, looked at and emptied as its operator would."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import redis
from celery import Celery

from settings import Settings
from tasks.celery_app import QUEUES, make_app


class Queues:
    """Our queues on the broker at `url`, reached past any proxy."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.on_valkey = url.startswith("redis")
        self.app: Celery = make_app(Settings(_env_file=None, DATABASE_URL="", CELERY_BROKER_URL=url))

    def close(self) -> None:
        """Close its connections."""
        self.app.close()

    def waiting(self) -> int:
        """How many messages wait to be taken."""
        if self.on_valkey:
            with self._valkey() as client:
                return sum(int(client.llen(name)) for name in QUEUES)
        with self.app.connection_for_read() as connection:
            return sum(int(connection.default_channel.queue_declare(name, passive=True).message_count) for name in QUEUES)

    def unacknowledged(self) -> int:
        """How many messages Valkey keeps for workers that have not acknowledged them; RabbitMQ tells only its operator."""
        if not self.on_valkey:
            return 0
        with self._valkey() as client:
            return int(client.hlen("unacked"))

    def empty(self) -> int:
        """Throw everything away, on Valkey with FLUSHALL; returns how many messages waited."""
        if self.on_valkey:
            waited = self.waiting()
            with self._valkey() as client:
                client.flushall()
            return waited
        with self.app.connection_for_write() as connection:
            return sum(int(connection.default_channel.queue_purge(name)) for name in QUEUES)

    @contextlib.contextmanager
    def _valkey(self) -> Iterator[Any]:
        with redis.Redis.from_url(self.url) as client:
            yield client
