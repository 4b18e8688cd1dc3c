"""The pipeline on RabbitMQ: quorum queues, publisher confirms, a delivery limit."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery

from cli.standalone.commands import basic_auth_header
from observability.queue_depth import Depth, depths
from settings import Settings
from store.conversations import intake
from store.database import Database
from tasks.celery_app import make_app
from tasks.dispatcher import Dispatcher
from tests.support.factories import tenant
from tests.support.invariants import violations
from tests.support.rabbitmq import ABSENT, RabbitMQ
from tests.support.servers import free_port, until
from tests.support.stack import FLOWER_AUTH, TOOL, Stack, running

pytestmark = pytest.mark.skipif(not RabbitMQ.executable(), reason=ABSENT)


@pytest.fixture(scope="module")
def stack(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Provide a stack on its own RabbitMQ node. Without Valkey there are no realtime messages."""
    with RabbitMQ() as broker, running(Stack(database_url, broker.url, Path(tmp_path_factory.mktemp("stack")))) as made:
        made.worker()
        made.beat()
        yield made


async def test_turn_with_a_tool_and_message_through_the_broker_are_answered(stack: Stack):
    database = Database(stack.database_url, pool_size=4)
    await database.open()
    app = make_app(Settings(DATABASE_URL=stack.database_url, CELERY_BROKER_URL=stack.broker_url))
    dispatcher = Dispatcher(app, stack.database_url)
    dispatcher.start()
    integration = {"configuration": {"url": f"{stack.sandbox_url}/tools/orders_lookup"}}
    made = await tenant(database, tools=({**TOOL, "integration": integration},))

    accepted = await intake.accept(database, made.workspace_id, made.session_id, "Is order 41 paid?")
    assert accepted.turn_id is not None
    dispatcher.dispatch(accepted.turn_id)
    until(lambda: stack.status(accepted.turn_id) == "done", 20)
    assert stack.one("SELECT dispatch_count FROM turns WHERE id = %s", accepted.turn_id) == 0, (
        "the sweep dispatched the turn, not the dispatcher"
    )

    # The producer names the exchange and declares no queue: its declaration would conflict with the arguments of ours.
    producer = Celery(broker=stack.broker_url)
    producer.send_task(
        "messages.receive",
        kwargs={"session_id": str(made.session_id), "message_key": "web-1", "text": "And 42?"},
        exchange="messages",
        routing_key="messages",
    )
    until(lambda: stack.one("SELECT count(*) FROM events WHERE session_id = %s AND kind = 'agent_message'", made.session_id) == 2, 20)
    producer.close()
    stack.drained()

    assert violations(stack.database_url) == {}
    with app.connection_for_read() as connection:
        for name in ("turns.dead", "messages.dead"):
            assert connection.default_channel.queue_declare(name, passive=True).message_count == 0
    dispatcher.close()
    app.close()
    await database.close()


def test_flower_and_top_show_queues_without_the_management_plugin(stack: Stack):
    port = free_port()
    stack.flower(port)
    app = make_app(Settings(DATABASE_URL=stack.database_url, CELERY_BROKER_URL=stack.broker_url))
    with app.connection_for_write() as connection:
        connection.default_channel.basic_publish(connection.default_channel.prepare_message(b"{}"), "", "turns.dead")

    def lengths() -> dict[str, tuple[int, int]]:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/api/queues/length", headers=basic_auth_header(FLOWER_AUTH))
        with urllib.request.urlopen(request, timeout=10) as reply:
            return {queue["name"]: (queue["messages"], queue["consumers"]) for queue in json.load(reply)["active_queues"]}

    until(lambda: lengths()["turns.dead"] == (1, 0), 20)
    assert lengths()["turns"] == (0, 1)
    assert depths(app, ["turns.dead", "no-such-queue", "turns"]) == {
        "turns.dead": Depth(1, consumers=0),
        "no-such-queue": Depth(0),
        "turns": Depth(0, consumers=1),
    }
    app.close()
