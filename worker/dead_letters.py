"""Where RabbitMQ puts messages that were delivered too often to be worth another try.

A ring that lands there is missed by nobody: the sweep rings its turn again. A message of a web app's is kept for an operator to look at.
"""

from __future__ import annotations

from typing import Any

from celery import bootsteps
from kombu.entity import Exchange, Queue

DELIVERY_LIMIT = 10


def dead_letters_of(name: str) -> str:
    """The name of the exchange and queue that take what the queue `name` gives up."""
    return f"{name}.dead"


class DeclareDeadLetters(bootsteps.StartStopStep):
    """Declares them each time a worker has connected to RabbitMQ; does nothing on other brokers."""

    requires: Any = ("celery.worker.consumer.connection:Connection",)

    def start(self, consumer: Any) -> None:
        """Declare the exchange and queue of dead letters for every queue of ours. Raises what the connection raises, which reconnects."""
        if consumer.connection.transport.driver_type != "amqp":
            return
        with consumer.connection.channel() as channel:
            for queue in consumer.app.amqp.queues.values():
                if (queue.queue_arguments or {}).get("x-dead-letter-exchange"):
                    name = dead_letters_of(queue.name)
                    exchange = Exchange(name, type="fanout", durable=True)
                    Queue(name, exchange, durable=True, queue_arguments={"x-queue-type": "quorum"}).bind(channel).declare()
