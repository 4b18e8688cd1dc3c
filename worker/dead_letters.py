"""RabbitMQ's dead-letter queues, for messages that were delivered too often.

A dispatch that lands there is not missed: the sweep dispatches its turn again. A customer's message is kept for an operator to look at.
"""

from __future__ import annotations

from typing import Any

from celery import bootsteps
from kombu.entity import Exchange, Queue

DELIVERY_LIMIT = 10


def dead_letters_of(name: str) -> str:
    """Return the name of the dead-letter exchange and queue of the queue `name`."""
    return f"{name}.dead"


class DeclareDeadLetters(bootsteps.StartStopStep):
    """Declares the dead-letter queues each time a worker has connected to RabbitMQ. Does nothing on other brokers."""

    requires: Any = ("celery.worker.consumer.connection:Connection",)

    def start(self, consumer: Any) -> None:
        """Declare the dead-letter exchange and queue of every queue of ours.

        Raises what the connection raises, which makes the worker reconnect.
        """
        if consumer.connection.transport.driver_type != "amqp":
            return
        with consumer.connection.channel() as channel:
            for queue in consumer.app.amqp.queues.values():
                if (queue.queue_arguments or {}).get("x-dead-letter-exchange"):
                    name = dead_letters_of(queue.name)
                    exchange = Exchange(name, type="fanout", durable=True)
                    Queue(name, exchange, durable=True, queue_arguments={"x-queue-type": "quorum"}).bind(channel).declare()
