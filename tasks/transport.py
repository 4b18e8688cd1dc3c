"""kombu's Redis transport, with a close that survives a broken connection.

Closing a channel whose BRPOP is pending first reads that reply. On a broken connection the read fails, and the close stops before
it has begun; when Celery then closes the same channel again, its transport is gone, and what should have been a reconnect ends as
"Unrecoverable error: AttributeError: 'NoneType' object has no attribute 'hostname'" and a worker that leaves. Which socket notices
the loss first decides, so it happens now and then, to workers with unacknowledged messages: to ours.

    app.conf.broker_transport = "tasks.transport:Transport"
"""

from __future__ import annotations

from queue import Empty
from typing import Any

from kombu.transport import redis


class Channel(redis.Channel):
    """A channel that can be closed when its connection is broken already, and makes one client, not one per command."""

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
            return super()._brpop_read(**options)
        except self.connection_errors as error:
            if not self._closing:
                raise
            raise Empty from error  # a broken socket has nothing to say; go on closing


class Transport(redis.Transport):
    """Redis and Valkey, for the broker."""

    Channel = Channel
