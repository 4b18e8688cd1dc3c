"""kombu's Redis transport, which survives a close on a broken connection, and list items that are no messages.

Closing a channel whose BRPOP is pending first reads that reply. On a broken connection the read fails, and the close stops before
it has begun; when Celery then closes the same channel again, its transport is gone, and what should have been a reconnect ends as
"Unrecoverable error: AttributeError: 'NoneType' object has no attribute 'hostname'" and a worker that leaves. Which socket notices
the loss first decides, so it happens now and then, to workers with unacknowledged messages: to ours.

What is pushed onto a queue without kombu's envelope is no message. Reading it would end the worker; here it is dropped, and said so.

    app.conf.broker_transport = "worker.redis_transport:Transport"
"""

from __future__ import annotations

import logging
from queue import Empty
from typing import Any

from kombu.transport import redis, virtual

log = logging.getLogger(__name__)


class NoMessage(ValueError):
    """Something without an envelope, or with one that cannot be acknowledged."""


NOTHING_READABLE = (ValueError, RecursionError)  # no JSON, JSON that is no envelope, JSON too deep to be read


class Message(virtual.Message):
    """A message whose envelope has everything that it takes to acknowledge it and to put it back."""

    def __init__(self, payload: Any, channel: Any = None, **kwargs: Any) -> None:
        try:
            super().__init__(payload, channel=channel, **kwargs)
            complete = isinstance(self.delivery_tag, str) and {"exchange", "routing_key"} <= self.delivery_info.keys()
        except (TypeError, LookupError, AttributeError, ValueError) as error:
            raise NoMessage(type(error).__name__) from None
        if not complete:
            raise NoMessage("it cannot be acknowledged")


class Observation:
    """What the broker has said to this process: how often it answered a request for the next message, with one or with "none yet"."""

    replies = 0


class Channel(redis.Channel):
    """A channel that can be closed when its connection is broken already, and makes one client, not one per command."""

    Message = Message

    _made: tuple[Any, Any] = (None, None)

    def _create_client(self, asynchronous: bool = False) -> Any:
        """The client for a command. It holds no connection, only its pool; a new pool gets a new one."""
        if asynchronous:
            return super()._create_client(asynchronous=True)  # this one is given a connection of its own
        pool, client = self._made
        if pool is not self.pool:
            client = super()._create_client()
            self._made = (self.pool, client)
        return client

    def _brpop_read(self, **options: Any) -> Any:
        try:
            taken = super()._brpop_read(**options)
        except Empty:
            Observation.replies += 1
            raise
        except NOTHING_READABLE as error:
            Observation.replies += 1
            raise self._dropped(error) from None
        except self.connection_errors as error:
            if not self._closing:
                raise
            raise Empty from error  # a broken socket has nothing to say; go on closing
        Observation.replies += 1
        return taken

    def _receive(self) -> Any:
        try:
            return super()._receive()
        except NOTHING_READABLE as error:
            raise self._dropped(error) from None

    def _dropped(self, error: Exception) -> Empty:
        """Say what was dropped (it had been taken from its queue), without quoting it; returns what tells kombu that there is nothing."""
        log.error("an item that is no message was dropped", extra={"error_class": type(error).__name__})
        return Empty()


class Transport(redis.Transport):
    """Redis and Valkey, for the broker."""

    Channel = Channel
