"""kombu's Redis transport, made to survive closing a broken connection, and queue items that are not messages.

Closing a channel whose BRPOP is pending first reads that reply. On a broken connection the read fails, and the close stops before it has
begun; when Celery then closes the same channel again, its transport is gone. Instead of a reconnect the worker ends with "Unrecoverable
error: AttributeError: 'NoneType' object has no attribute 'hostname'" (the same error as in celery/kombu#582). It depends on which socket
notices the loss first, so it happens now and then, to workers with unacknowledged messages, as ours have.

An item that was pushed onto a queue without kombu's envelope would end the worker when it is read; here it is dropped and logged.

    app.conf.broker_transport = "worker.redis_transport:Transport"
"""

from __future__ import annotations

import logging
from queue import Empty
from typing import Any

from kombu.transport import redis, virtual

log = logging.getLogger(__name__)


class NotAMessage(ValueError):
    """A queue item has no envelope, or one that cannot be acknowledged."""


UNREADABLE = (ValueError, RecursionError)  # not JSON, JSON that is not an envelope, JSON nested too deeply


class Message(virtual.Message):
    """A message whose envelope has everything needed to acknowledge it and to put it back."""

    def __init__(self, payload: Any, channel: Any = None, **kwargs: Any) -> None:
        try:
            super().__init__(payload, channel=channel, **kwargs)
            complete = isinstance(self.delivery_tag, str) and {"exchange", "routing_key"} <= self.delivery_info.keys()
        except (TypeError, LookupError, AttributeError, ValueError) as error:
            raise NotAMessage(type(error).__name__) from None
        if not complete:
            raise NotAMessage("it cannot be acknowledged")


class BrokerReplies:
    """The number of the broker's replies to this process's requests for the next message, those that say "none yet" included."""

    count = 0


class Channel(redis.Channel):
    """A channel that can be closed on a broken connection, and that creates one client instead of one per command."""

    Message = Message

    _pool_and_client: tuple[Any, Any] = (None, None)

    def _create_client(self, asynchronous: bool = False) -> Any:
        """Return the client for a command. It owns no connection, only a reference to its pool; a new pool gets a new client."""
        if asynchronous:
            return super()._create_client(asynchronous=True)  # gets a connection of its own
        pool, client = self._pool_and_client
        if pool is not self.pool:
            client = super()._create_client()
            self._pool_and_client = (self.pool, client)
        return client

    def _brpop_read(self, **options: Any) -> Any:
        try:
            taken = super()._brpop_read(**options)
        except Empty:
            BrokerReplies.count += 1
            raise
        except UNREADABLE as error:
            BrokerReplies.count += 1
            raise self._drop(error) from None
        except self.connection_errors as error:
            if not self._closing:
                raise
            raise Empty from error  # a broken socket has no reply; go on closing
        BrokerReplies.count += 1
        return taken

    def _receive(self) -> Any:
        try:
            return super()._receive()
        except UNREADABLE as error:
            raise self._drop(error) from None

    def _drop(self, error: Exception) -> Empty:
        """Log the item that was just taken from its queue, without its contents; return the exception that tells kombu "none yet"."""
        log.error("Dropping a queue item that is not a message", extra={"error_class": type(error).__name__})
        return Empty()


class Transport(redis.Transport):
    """Redis and Valkey as the broker."""

    Channel = Channel
