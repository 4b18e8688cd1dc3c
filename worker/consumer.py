"""Celery's consumer, made to survive messages that are not tasks.

Celery rejects messages that it cannot decode. A body that is valid JSON of another shape ends the whole worker instead, and the broker
delivers it to the next one, until none is left (celery/celery#7975). Celery also logs the messages that it rejects; bodies may hold a
customer's text.

    app.conf.worker_consumer = "worker.consumer:Consumer"
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from celery.worker import consumer

log = logging.getLogger(__name__)

MALFORMED = (TypeError, ValueError, LookupError, AttributeError)


class Consumer(consumer.Consumer):
    """Rejects malformed and unknown messages: RabbitMQ dead-letters them, Valkey drops them. The sweep repeats lost dispatches."""

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        """Return Celery's message handler, wrapped so that malformed messages are rejected."""
        handle = super().create_task_handler(*args, **kwargs)

        def on_task_received(message: Any) -> None:
            try:
                handle(message)
            except MALFORMED as error:
                self.reject(message, error)

        return on_task_received

    def reject(self, message: Any, error: BaseException | None) -> None:
        """Reject `message` and log it without its contents."""
        delivery = message.delivery_info or {}
        log.error(
            "Rejecting a malformed or unknown message",
            extra={"queue": str(delivery.get("routing_key")), "error_class": type(error).__name__, "bytes": len(message.body or b"")},
        )
        if not message.acknowledged:
            message.reject_log_error(log, self.connection_errors)

    def on_decode_error(self, message: Any, exc: BaseException) -> None:
        """Reject a message whose body cannot be decoded."""
        self.reject(message, exc)

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """Reject a message that names no task."""
        self.reject(message, None)

    def on_unknown_task(self, body: Any, message: Any, exc: BaseException) -> None:
        """Reject a message for a task that this app does not have."""
        self.reject(message, exc)

    def on_invalid_task(self, body: Any, message: Any, exc: BaseException) -> None:
        """Reject a message whose headers or body are not a task's."""
        self.reject(message, exc)
