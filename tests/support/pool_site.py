"""A broker, and worker processes of the pool on it with a small application, for the pool's tests."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from celery import Celery, group
from redis import Redis

from tests.support import pool_app
from tests.support.fork_server import READ_ON_IMPORT, Child, fork_server
from tests.support.servers import ROOT, process_env

PATIENCE_S = 30.0


def until(true: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """Call `true` until it returns a truthy value, and return that."""
    deadline = time.monotonic() + patience_s
    while not (answer := true()):
        assert time.monotonic() < deadline, f"waited {patience_s:g} s in vain: {what}"
        time.sleep(0.02)
    return answer


def start(argv: tuple[str, ...], env: dict[str, str], log: Path) -> Child | subprocess.Popen[bytes]:
    """Start `python ARGV`: forked, unless `env` has a variable that libraries read when they are loaded."""
    if not READ_ON_IMPORT & env.keys():
        return fork_server().start(argv, env, log=log)
    with log.open("ab") as out:
        return subprocess.Popen([sys.executable, *argv], env=env, cwd=ROOT, stdout=out, stderr=out, stdin=subprocess.DEVNULL)


class Worker:
    """A worker process on a queue of its own."""

    def __init__(self, site: Site, queue: str, process: Child | subprocess.Popen[bytes], log: Path) -> None:
        self.site, self.queue, self.process, self.log = site, queue, process, log
        self.hostname = f"{queue}@pool"

    def ready(self) -> None:
        until(lambda: self.process.poll() is not None or self.site.notes.exists(f"ready:{self.hostname}"), "the worker's start")
        assert self.process.poll() is None, self.log.read_text()

    def ask(self, command: str, **arguments: Any) -> Any:
        """Return the worker's answer to a remote-control command."""
        control = self.site.app.control
        replies = control.broadcast(command, arguments=arguments, destination=[self.hostname], reply=True, limit=1, timeout=10)
        assert replies, f"no answer to {command}"
        return replies[0][self.hostname]

    def pool(self) -> dict[str, Any]:
        return dict(self.ask("stats")["pool"])

    def kill(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def exit_status(self) -> int:
        return self.process.wait(PATIENCE_S)


class Site:
    """One broker with a result store, and an application that sends to it."""

    def __init__(self, kind: str, broker: str, results: str, folder: Path) -> None:
        self.kind, self.broker, self.results, self.folder = kind, broker, results, folder
        self.app: Celery = pool_app.build(broker, results, "unused")
        self.notes = Redis.from_url(results, decode_responses=True)

    def send(self, task: str, *args: Any, queue: str, **options: Any) -> Any:
        return self.signature(task, *args, queue=queue, **options).apply_async()

    def signature(self, task: str, *args: Any, queue: str, **options: Any) -> Any:
        return self.app.tasks[f"tests.support.pool_app.{task}"].signature(args, queue=queue, **options)

    def open(self, gate: str) -> None:
        self.notes.set(f"gate:{gate}", 1)

    def count(self, key: str) -> int:
        return int(self.notes.llen(key))

    def waiting(self, queue: str) -> int:
        """Return the number of queued messages in `queue`, without those that a worker has taken."""
        with self.app.connection_for_read() as connection:
            if self.kind == "valkey":
                return int(connection.default_channel.client.llen(queue))
            return int(connection.default_channel.queue_declare(queue, passive=True).message_count)

    @contextmanager
    def worker(self, *options: str, queue: str = "", ready: bool = True, **environment: str) -> Iterator[Worker]:
        queue = queue or f"q-{uuid.uuid4().hex[:8]}"
        self.app.amqp.queues.add(pool_app.queue_on(self.broker, queue))
        self.notes.delete(f"ready:{queue}@pool")
        log = self.folder / f"{queue}-{uuid.uuid4().hex[:4]}.log"
        names = {pool_app.BROKER: self.broker, pool_app.RESULTS: self.results, pool_app.QUEUE: queue}
        command = ["celery", "-A", "tests.support.pool_app", "worker", "--pool", "custom", "--hostname", f"{queue}@pool", "--queues", queue]
        argv = ("-m", *command, "--loglevel", "INFO", "--without-mingle", "--without-gossip", *(options or ("-c", "100")))
        env = process_env(**{**names, "CELERY_CUSTOM_WORKER_POOL": "worker.pool:TaskPool", **environment})
        log.touch()
        process = start(argv, env, log)
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
    """Send `count` tasks that wait at `gate`; return once they wait and Celery counts them as active."""
    results = group(site.signature("holds", gate, queue=worker.queue) for _ in range(count)).apply_async()
    until(lambda: len(worker.ask("active")) == count and site.count(f"begun:{gate}") == count, f"{count} starts")
    return results
