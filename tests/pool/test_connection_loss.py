"""The broker's connection breaks while turns run."""

from __future__ import annotations

import uuid
from urllib.parse import urlsplit

from tests.pool.conftest import PATIENCE_S, Site, until
from tests.pool.proxy import Proxy
from tests.pool.test_shutdown import hold


def test_turns_outlive_a_broken_connection(site: Site) -> None:
    gate = uuid.uuid4().hex
    broker = urlsplit(site.broker)
    with Proxy(broker.port or 0) as proxy:
        through = broker._replace(netloc=broker.netloc.replace(f":{broker.port}", f":{proxy.port}")).geturl()
        with site.worker(POOL_TEST_BROKER=through) as worker:
            held = hold(site, worker, gate, 20)
            proxy.cut()
            until(lambda: "Connection refused" in worker.log.read_text(), "a refused attempt to connect")
            proxy.mend()
            until(lambda: worker.log.read_text().count("Connected to") == 2, "a new connection")
            assert site.send("plain", 1, queue=worker.queue).get(timeout=PATIENCE_S) == 2
            if site.kind == "rabbitmq":  # which delivers again at once, while the first runs go on: what the fence is for
                until(lambda: site.count(f"begun:{gate}") == 40, "20 messages delivered again")
            site.open(gate)
            assert held.get(timeout=PATIENCE_S) == ["held"] * 20
            until(lambda: not worker.ask("active"), "Celery to hear of every end")
        assert site.count(f"ended:{gate}") == site.count(f"begun:{gate}") == (20 if site.kind == "valkey" else 40)
        assert site.count(f"cancelled:{gate}") == 0
    until(lambda: site.waiting(worker.queue) == 0, "an empty queue")
