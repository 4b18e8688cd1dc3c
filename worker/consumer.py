"""Celery's consumer, which survives messages that are no tasks.

Celery sets aside what it cannot decode. A body that is JSON of another shape ends the whole worker instead, and the broker delivers it
to the next one, until none is left. It also logs what it sets aside; bodies may hold a customer's words.

    app.conf.worker_consumer = "worker.consumer:Consumer"
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from celery.worker import consumer

log = logging.getLogger(__name__)

MISSHAPEN = (TypeError, ValueError, LookupError, AttributeError)


class Consumer(consumer.Consumer):
    """Rejects what is no task for us: RabbitMQ keeps it among the dead letters, Valkey drops it. A ring among it is rung again."""

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        """Celery's handler of messages; what it stumbles over is set aside."""
        handle = super().create_task_handler(*args, **kwargs)

        def on_task_received(message: Any) -> None:
            try:
                handle(message)
            except MISSHAPEN as error:
                self.set_aside(message, error)

        return on_task_received

    def set_aside(self, message: Any, error: BaseException | None) -> None:
        """Reject `message`, and say so without quoting it."""
        where = message.delivery_info or {}
        log.error(
            "a message that is no task of ours was set aside",
            extra={"queue": str(where.get("routing_key")), "error_class": type(error).__name__, "bytes": len(message.body or b"")},
        )
        if not message.acknowledged:
            message.reject_log_error(log, self.connection_errors)

    def on_decode_error(self, message: Any, exc: BaseException) -> None:
        """Its body cannot be read."""
        self.set_aside(message, exc)

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """It names no task."""
        self.set_aside(message, None)

    def on_unknown_task(self, body: Any, message: Any, exc: BaseException) -> None:
        """It names a task that we do not have."""
        self.set_aside(message, exc)

    def on_invalid_task(self, body: Any, message: Any, exc: BaseException) -> None:
        """Its headers or its body are not a task's."""
        self.set_aside(message, exc)
