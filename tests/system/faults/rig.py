"""What the faults are done to: Postgres, a broker, the API, beat and workers, the product's connections running through proxies."""

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
    """What a fault does to a broker."""

    @property
    def url(self) -> str:
        """Where it is, for its operator."""

    @property
    def port(self) -> int:
        """Where it listens."""

    def kill(self) -> int:
        """SIGKILL it; returns its exit code."""

    def start(self) -> Any:
        """Start it again on the same port and data."""


class Valkey(EmbeddedValkey):
    """A Valkey that keeps its data, as a broker should."""

    def kill(self) -> int:
        """SIGKILL it; returns its exit code."""
        return killed(self)


class Postgres(EmbeddedPostgres):
    """A Postgres that can be killed, with few connections, so that they can all be taken."""

    def _popen(self, command: Sequence[str], **options: Any) -> IO[bytes] | None:
        return super()._popen([*command, "-c", f"max_connections={MAX_CONNECTIONS}"], **options)

    def kill(self) -> int:
        """SIGKILL the postmaster; returns its exit code. `start` brings it back on the same data."""
        return killed(self)


def killed(server: EmbeddedPostgres | EmbeddedValkey) -> int:
    """SIGKILL `server`, wait until it is gone, return its exit code."""
    assert server.pid is not None, "it does not run"
    server.send_kill()
    until(lambda: not server.alive)
    return -signal.SIGKILL if server.exit_description == "was killed by SIGKILL" else 0


@dataclass
class SupervisedProcess:
    """A process of the product that is started again when it ends, as a supervisor would."""

    name: str
    begin: Callable[[], Process]
    process: Process
    wanted: bool = True


@dataclass
class Rig:
    """Everything runs when it is made; `rig()` makes one."""

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
        """Where the API answers."""
        return f"http://127.0.0.1:{self.api_port}"

    @property
    def workers(self) -> list[SupervisedProcess]:
        """The workers."""
        return [one for one in self.processes if one.name.startswith("worker")]

    def supervise(self, name: str, begin: Callable[[], Process]) -> SupervisedProcess:
        """Start a process and keep it running."""
        with self.lock:
            made = SupervisedProcess(name, begin, begin())
            self.processes.append(made)
        return made

    def remove(self, one: SupervisedProcess) -> int:
        """Stop a process for good; returns its exit code."""
        with self.lock:
            one.wanted = False
            self.processes.remove(one)
        return one.process.stop()

    def restart_ended(self) -> None:
        """Start what has ended again."""
        with self.lock:
            for one in self.processes:
                code = one.process.popen.poll()
                if code is not None and one.wanted:
                    self.exits.append((one.name, code))
                    one.process = one.begin()

    def named(self, name: str) -> SupervisedProcess:
        """The processes process of that name."""
        return next(one for one in self.processes if one.name == name)

    def ready(self) -> bool:
        """Whether every worker takes work and the API answers."""
        with self.lock:
            return all("ready." in one.process.log.read_text() for one in self.workers) and self._api_answers()

    def _api_answers(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.api_url}/readyz", timeout=5) as reply:
            return bool(reply.status == 200)
        return False

    def lease_count(self, process: Process) -> int:
        """How many sessions' leases a worker holds."""
        count: int = self.stack.one("SELECT count(*) FROM sessions WHERE lease_owner LIKE %s", f"%:{process.popen.pid}:%")
        return count

    def count_in_logs(self, words: str, since: dict[Path, int]) -> int:
        """How often the product's logs say `words` beyond where `bookmarks()` was taken."""
        return sum(log.read_bytes()[since.get(log, 0) :].count(words.encode()) for log in self.stack.directory.glob("*.log"))

    def bookmarks(self) -> dict[Path, int]:
        """How long each log is now."""
        return {log: log.stat().st_size for log in self.stack.directory.glob("*.log")}


def _watch(rig: Rig, over: threading.Event) -> None:
    while not over.wait(0.2):
        rig.restart_ended()


@contextlib.contextmanager
def rig(kind: Kind, directory: Path, *, workers: int = 2, concurrency: int = 6, fast: bool = True, **settings: str) -> Iterator[Rig]:
    """A rig with `workers` workers of `concurrency` turns each: few enough for rings to wait. `fast`: Postgres without fsync."""
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
        over = threading.Event()
        watcher = threading.Thread(target=_watch, args=(made, over), name="supervisor")
        watcher.start()
        try:
            yield made
        finally:
            over.set()
            watcher.join()
            to_database.heal()
            to_broker.heal()
