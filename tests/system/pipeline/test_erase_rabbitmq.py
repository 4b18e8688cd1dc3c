"""Removing a customer's messages from RabbitMQ: the others stay, in their order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest
from celery import Celery

from cli import broker_purge
from settings import Settings
from tasks.celery_app import make_app, queue
from tests.support.rabbitmq import ABSENT, RabbitMQ
from tests.support.servers import until
from worker.dead_letters import DELIVERY_LIMIT, DeclareDeadLetters

pytestmark = pytest.mark.skipif(not RabbitMQ.executable(), reason=ABSENT)


class Consumer:
    """The attributes of a worker that `DeclareDeadLetters` reads."""

    def __init__(self, app: Celery, connection: object) -> None:
        self.app, self.connection = app, connection


@pytest.fixture(scope="module")
def app() -> Iterator[Celery]:
    with RabbitMQ() as broker:
        made = make_app(Settings(_env_file=None, DATABASE_URL="", CELERY_BROKER_URL=broker.url))
        yield made
        made.close()


@pytest.fixture
def empty_queues(app: Celery) -> Celery:
    """Provide the app with the `messages` queue and its dead-letter queue, both empty."""
    with app.connection_for_write() as connection:
        queue("messages", app.conf.broker_url).bind(connection.default_channel).declare()
        DeclareDeadLetters(Consumer(app, connection)).start(Consumer(app, connection))
        for name in ("messages", "messages.dead"):
            connection.default_channel.queue_purge(name)
    return app


def post(app: Celery, session_id: UUID, words: str, *, dead: bool = False) -> None:
    arguments = {"session_id": str(session_id), "message_key": words, "text": words}
    name = "messages.dead" if dead else "messages"
    with Celery(broker=app.conf.broker_url) as producer:  # like a web app, which declares no queues
        producer.send_task("messages.receive", kwargs=arguments, exchange=name, routing_key=name)


def count(app: Celery, name: str) -> int:
    with app.connection_for_write() as connection:
        return int(connection.default_channel.queue_declare(name, passive=True).message_count)


def texts(app: Celery, name: str) -> list[str]:
    """Remove all messages of a queue and return their texts."""
    found = []
    with app.connection_for_write() as connection:
        while message := connection.default_channel.basic_get(name, no_ack=True):
            found.append(json.loads(message.body)[1]["text"])
    return found


def test_purge_removes_one_customers_messages_and_keeps_the_order_of_others(empty_queues: Celery):
    mary, john = uuid4(), uuid4()
    for number in range(6):
        post(empty_queues, (mary, john)[number % 2], f"m{number}")
    post(empty_queues, mary, "d0", dead=True)
    post(empty_queues, john, "d1", dead=True)
    until(lambda: (count(empty_queues, "messages"), count(empty_queues, "messages.dead")) == (6, 2), 30)

    planned = broker_purge.purge(empty_queues, [mary], dry_run=True)
    until(lambda: count(empty_queues, "messages") == 6, 30)
    purged = broker_purge.purge(empty_queues, [mary])
    until(lambda: count(empty_queues, "messages") == 3, 30)
    again = broker_purge.purge(empty_queues, [mary])
    until(lambda: count(empty_queues, "messages") == 3, 30)

    assert planned == purged == {"messages": 3, "messages.dead": 1}
    assert again == {}
    assert texts(empty_queues, "messages") == ["m1", "m3", "m5"]
    assert texts(empty_queues, "messages.dead") == ["d1"]


def test_repeated_purges_create_no_dead_letters(empty_queues: Celery):
    """A purge reads and returns each message; these reads must not count towards the delivery limit."""
    john = uuid4()
    for number in range(3):
        post(empty_queues, john, f"m{number}")
    until(lambda: count(empty_queues, "messages") == 3, 30)

    for _ in range(DELIVERY_LIMIT + 3):
        assert broker_purge.purge(empty_queues, [uuid4()]) == {}
        until(lambda: count(empty_queues, "messages") == 3, 30)

    assert count(empty_queues, "messages.dead") == 0
    assert texts(empty_queues, "messages") == ["m0", "m1", "m2"]


def test_purge_of_an_undeclared_queue(app: Celery):
    with app.connection_for_write() as connection:
        for name in ("messages", "messages.dead"):
            connection.default_channel.queue_delete(name)

    assert broker_purge.purge(app, [uuid4()]) == {}
