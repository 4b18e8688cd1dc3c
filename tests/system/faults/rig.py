"""The system under test: Postgres, a broker, the API, beat and workers. The product's connections go through proxies."""

from __future__ import annotations

import contextlib
import signal
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from cli.standalone.servers import EmbeddedPostgres, EmbeddedValkey
from store import migrate
from tests.support.proxy import Proxy
from tests.support.rabbitmq import RabbitMQ
from tests.support.servers import free_port, until
from tests.support.stack import Process, Stack, running
from tests.system.faults.broker_queues import Queues

Kind = Literal["valkey", "rabbitmq"]
READY_S = 60.0
MAX_CONNECTIONS = 80


class Broker(Protocol):
    """The operations of a broker that faults use."""

    @property
    def url(self) -> str:
        """Return its address, without the proxy."""

    @property
    def port(self) -> int:
        """Return the port on which it listens."""

    def kill(self) -> int:
        """Send SIGKILL and return the exit code."""

    def start(self) -> Any:
        """Start it again with the same port and data."""


class Valkey(EmbeddedValkey):
    """A Valkey that keeps its data when it is killed."""

    def kill(self) -> int:
        """Send SIGKILL and return the exit code."""
        return kill_server(self)


class Postgres(EmbeddedPostgres):
    """A Postgres that can be killed. It allows few connections, so that a fault can take them all."""

    def _popen(self, command: Sequence[str], **options: Any) -> IO[bytes] | None:
        return super()._popen([*command, "-c", f"max_connections={MAX_CONNECTIONS}"], **options)

    def kill(self) -> int:
        """Send SIGKILL to the postmaster and return its exit code. `start` starts it again with the same data."""
        return kill_server(self)


def kill_server(server: EmbeddedPostgres | EmbeddedValkey) -> int:
    """Send SIGKILL to `server`, wait for its end and return its exit code."""
    assert server.pid is not None, "the server does not run"
    server.send_kill()
    until(lambda: not server.alive)
    return -signal.SIGKILL if server.exit_description == "was killed by SIGKILL" else 0


@dataclass
class SupervisedProcess:
    """A process of the product that is started again when it ends, as by a supervisor."""

    name: str
    start: Callable[[], Process]
    process: Process
    wanted: bool = True


@dataclass
class Rig:
    """The running system; `rig()` starts it."""

    kind: Kind
    stack: Stack
    postgres: Postgres
    broker: Broker
    to_database: Proxy
    to_broker: Proxy
    queues: Queues
    api_port: int
    processes: list[SupervisedProcess] = field(default_factory=list)
    exits: list[tuple[str, int]] = field(default_factory=list)
    """(name, exit code) of every process that ended and was started again."""
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def api_url(self) -> str:
        """Return the address of the API."""
        return f"http://127.0.0.1:{self.api_port}"

    @property
    def workers(self) -> list[SupervisedProcess]:
        """Return the workers."""
        return [one for one in self.processes if one.name.startswith("worker")]

    def supervise(self, name: str, start: Callable[[], Process]) -> SupervisedProcess:
        """Start a process, and start it again whenever it ends."""
        with self.lock:
            made = SupervisedProcess(name, start, start())
            self.processes.append(made)
        return made

    def remove(self, one: SupervisedProcess) -> int:
        """Stop a process for good and return its exit code."""
        with self.lock:
            one.wanted = False
            self.processes.remove(one)
        return one.process.stop()

    def restart_ended(self) -> None:
        """Start the processes that ended again."""
        with self.lock:
            for one in self.processes:
                code = one.process.popen.poll()
                if code is not None and one.wanted:
                    self.exits.append((one.name, code))
                    one.process = one.start()

    def named(self, name: str) -> SupervisedProcess:
        """Return the process of that name."""
        return next(one for one in self.processes if one.name == name)

    def ready(self) -> bool:
        """Return true if every worker accepts tasks and the API answers."""
        with self.lock:
            return all("ready." in one.process.log.read_text() for one in self.workers) and self._api_answers()

    def _api_answers(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.api_url}/readyz", timeout=5) as reply:
            return bool(reply.status == 200)
        return False

    def lease_count(self, process: Process) -> int:
        """Return the number of leases that a worker holds."""
        count: int = self.stack.one("SELECT count(*) FROM sessions WHERE lease_owner LIKE %s", f"%:{process.popen.pid}:%")
        return count

    def count_in_logs(self, words: str, since: dict[Path, int]) -> int:
        """Return how often `words` occurs in the logs after `since`, the result of an earlier `bookmarks()`."""
        return sum(log.read_bytes()[since.get(log, 0) :].count(words.encode()) for log in self.stack.directory.glob("*.log"))

    def bookmarks(self) -> dict[Path, int]:
        """Return the size of each log in bytes."""
        return {log: log.stat().st_size for log in self.stack.directory.glob("*.log")}


def _watch(rig: Rig, stop: threading.Event) -> None:
    while not stop.wait(0.2):
        rig.restart_ended()


@contextlib.contextmanager
def rig(kind: Kind, directory: Path, *, workers: int = 2, concurrency: int = 6, fast: bool = True, **settings: str) -> Iterator[Rig]:
    """Start a rig with `workers` workers of `concurrency` turns each, few enough for dispatch messages to wait in the broker.

    `fast` runs Postgres without fsync.
    """
    (directory / "logs").mkdir()
    with contextlib.ExitStack() as stack:
        server: Valkey | RabbitMQ = Valkey(directory / "valkey") if kind == "valkey" else RabbitMQ()
        stack.enter_context(server)
        broker: Broker = server
        postgres = stack.enter_context(Postgres(directory / "postgres", fast=fast))
        migrate.upgrade(postgres.url)
        postgres.make_login()
        to_database, to_broker = stack.enter_context(Proxy(postgres.port)), stack.enter_context(Proxy(broker.port))
        urls = {
            "DATABASE_URL": to_database.url(postgres.login_url),
            "CELERY_BROKER_URL": to_broker.url(broker.url),
            "TURNLINE_API_PORT": "0",
        }
        processes = stack.enter_context(running(Stack(postgres.url, broker.url, directory / "logs", **(urls | settings))))
        queues = Queues(broker.url)
        stack.callback(queues.close)
        made = Rig(kind, processes, postgres, broker, to_database, to_broker, queues, free_port())
        made.supervise("api", lambda: processes.api(made.api_port, wait=False))
        made.supervise("beat", processes.beat)
        for number in range(workers):
            made.supervise(f"worker {number}", lambda: processes.worker(concurrency=concurrency, wait=False))
        until(made.ready, READY_S)
        stop = threading.Event()
        watcher = threading.Thread(target=_watch, args=(made, stop), name="supervisor")
        watcher.start()
        try:
            yield made
        finally:
            stop.set()
            watcher.join()
            to_database.heal()
            to_broker.heal()
