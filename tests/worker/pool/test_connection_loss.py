"""The broker's connection breaks while tasks run."""

from __future__ import annotations

import contextlib
import uuid
from typing import Any
from urllib.parse import urlsplit

from kombu.connection import Connection
from kombu.entity import Exchange, Queue
from kombu.messaging import Consumer

from tests.support.pool_site import PATIENCE_S, Site, hold, until
from tests.support.proxy import Proxy


def test_running_tasks_survive_a_broken_connection(site: Site) -> None:
    gate = uuid.uuid4().hex
    with Proxy(urlsplit(site.broker).port or 0) as proxy:
        with site.worker(POOL_TEST_BROKER=proxy.url(site.broker)) as worker:
            held = hold(site, worker, gate, 20)
            proxy.take_down()
            until(lambda: "Connection refused" in worker.log.read_text(), "a refused attempt to connect")
            proxy.heal()
            until(lambda: worker.log.read_text().count("Connected to") == 2, "a new connection")
            assert site.send("plain", 1, queue=worker.queue).get(timeout=PATIENCE_S) == 2
            if site.kind == "rabbitmq":  # redelivers at once, while the first runs continue: the reason for the fence
                until(lambda: site.count(f"begun:{gate}") == 40, "20 redelivered messages")
            site.open(gate)
            assert held.get(timeout=PATIENCE_S) == ["held"] * 20
            until(lambda: not worker.ask("active"), "Celery to see that all have ended")
        assert site.count(f"ended:{gate}") == site.count(f"begun:{gate}") == (20 if site.kind == "valkey" else 40)
        assert site.count(f"cancelled:{gate}") == 0
    until(lambda: site.waiting(worker.queue) == 0, "an empty queue")


def test_polling_channel_with_unacknowledged_messages_can_be_closed_on_a_broken_connection(valkey: str) -> None:
    """As Celery does on a lost connection, with the sockets failing in the order that kombu's own transport does not survive."""
    server, name, got = urlsplit(valkey), uuid.uuid4().hex, []
    with Proxy(server.port or 0) as proxy:
        connection = Connection(f"redis://127.0.0.1:{proxy.port}/3", transport="worker.redis_transport:Transport")
        polling: Any = connection.default_channel
        Consumer(polling, [Queue(name)], callbacks=[lambda _, message: got.append(message)]).consume()
        replies = Queue(f"{name}-replies", Exchange(f"{name}-fanout", "fanout"), auto_delete=True)
        Consumer(connection.channel(), [replies], callbacks=[print]).consume()
        connection.Producer().publish("work", routing_key=name)
        while not got or polling._in_poll is None:
            with contextlib.suppress(TimeoutError):
                connection.drain_events(timeout=0.1)
        proxy.take_down()

        connection.collect(socket_timeout=1)
        connection.close()
