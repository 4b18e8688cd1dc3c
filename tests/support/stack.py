"""The pipeline with real processes: workers, beat and the sandbox, on the test's own database and broker."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

from cli.standalone.commands import basic_auth_header
from tests.support.db import fetch, fetch_value
from tests.support.fork_server import Child, fork_server
from tests.support.servers import ROOT, SECRET_KEY, free_port, process_env, until

TOOL = {
    "name": "orders_lookup",
    "description": "Looks an order up.",
    "effect": "idempotent",
    "parameters": {"type": "object", "properties": {"order": {"type": "integer"}}, "required": ["order"]},
}
FLOWER_AUTH = "operator:tests-know-it"


def answers(url: str, basic_auth: str = "") -> bool:
    """Return True if `url` answers 200."""
    request = urllib.request.Request(url, headers=basic_auth_header(basic_auth) if basic_auth else {})
    try:
        with urllib.request.urlopen(request, timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


class Process:
    """A child process, its output in a file, always ended. `-m MODULE …` is forked by the fork server, other commands are executed."""

    popen: Child | subprocess.Popen[bytes]

    def __init__(self, log: Path, env: dict[str, str], *argv: str) -> None:
        self.log = log
        log.touch()
        if argv[0] == "-m":
            self.popen = fork_server().start(argv, env, log=log)
            return
        with log.open("ab") as out:
            self.popen = subprocess.Popen(argv, env=env, cwd=ROOT, stdout=out, stderr=out, stdin=subprocess.DEVNULL)

    def logged(self, text: str) -> bool:
        assert self.popen.poll() is None, f"the process ended:\n{self.log.read_text()[-4000:]}"
        return text in self.log.read_text()

    def kill(self) -> None:
        """Send SIGKILL and wait for the end."""
        self.popen.kill()
        self.popen.wait()

    def stop(self, within_s: float = 20) -> int:
        """Send SIGTERM and return the exit code."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
            try:
                self.popen.wait(within_s)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.popen.wait()


class Stack:
    """The running processes that turns need. Leases are short, so that a dead worker is detected within two seconds."""

    def __init__(self, database_url: str, broker_url: str, directory: Path, **settings: str) -> None:
        self.database_url, self.broker_url, self.directory = database_url, broker_url, directory
        self.sandbox_port = free_port()
        self.sandbox_url = f"http://127.0.0.1:{self.sandbox_port}"
        defaults = {
            "OPENAI_API_KEY": "sk-sandbox",
            "OPENAI_BASE_URL": f"{self.sandbox_url}/v1",
            "TURNLINE_SECRET_KEYS": SECRET_KEY,
            "TURNLINE_ALLOWED_NETWORKS": "127.0.0.0/8",
            "TURNLINE_TURN_LEASE_S": "2",
            "TURNLINE_TURN_HEARTBEAT_S": "0.5",
            "TURNLINE_SWEEP_EVERY_S": "0.5",
            "TURNLINE_RING_STALE_S": "1",
            "TURNLINE_DB_POOL_SIZE": "10",
            "CELERY_CUSTOM_WORKER_POOL": "worker.pool:TaskPool",
        }
        self.env = process_env(**(defaults | {"DATABASE_URL": database_url, "CELERY_BROKER_URL": broker_url} | settings))
        self._numbers = 0
        self._processes: list[Process] = []

    def start(self, *argv: str) -> Process:
        """Start `python …` with the stack's environment."""
        self._numbers += 1
        process = Process(self.directory / f"{self._numbers}.log", self.env, *argv)
        self._processes.append(process)
        return process

    def sandbox(self) -> Process:
        """Start the stand-in vendor and tool server."""
        process = self.start("-m", "sandbox", "--port", str(self.sandbox_port))
        until(lambda: process.logged("listening"))
        return process

    def worker(self, *, concurrency: int = 200, queues: str = "turns,messages,tools,maintenance", wait: bool = True) -> Process:
        """Start a worker process of the pool."""
        name = f"w{self._numbers + 1}-{os.getpid()}@test"
        process = self.start(
            *("-m", "celery", "-A", "tasks", "worker", "--pool", "custom"),
            *("-c", str(concurrency), "-n", name, "-Q", queues, "--without-mingle"),
        )
        if wait:
            until(lambda: process.logged("ready."), 30)
        return process

    def beat(self) -> Process:
        """Start the scheduler."""
        return self.start("-m", "celery", "-A", "tasks", "beat", "-s", str(self.directory / f"schedule-{self._numbers + 1}"))

    def flower(self, port: int, *options: str, prefix: str = "") -> Process:
        """Start Flower, behind a password."""
        self.env |= {"FLOWER_BASIC_AUTH": FLOWER_AUTH}
        process = self.start("-m", "celery", "-A", "tasks", "flower", "--address=127.0.0.1", f"--port={port}", *options)
        until(lambda: process.logged("") and answers(f"http://127.0.0.1:{port}{prefix}/healthcheck", FLOWER_AUTH), 30)
        return process

    def api(self, port: int, *, wait: bool = True) -> Process:
        """Start the API."""
        process = self.start("-m", "uvicorn", "api.app:app", "--host", "127.0.0.1", "--port", str(port), "--log-level", "warning")
        if wait:
            until(lambda: process.logged("") and answers(f"http://127.0.0.1:{port}/healthz"), 30)
        return process

    def close(self) -> None:
        """End every process."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.popen.send_signal(signal.SIGCONT)
        for process in reversed(self._processes):
            process.stop()

    def counts(self) -> dict[str, Any]:
        """Return the counts of the requests to the sandbox so far."""
        with urllib.request.urlopen(f"{self.sandbox_url}/_sandbox/counts", timeout=10) as reply:
            counts: dict[str, Any] = json.load(reply)
        return counts

    def turnline(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run the command line with the stack's settings, and return its exit code and output."""
        return fork_server().run(("-m", "cli.main", *arguments), self.env | env, cwd=self.directory, timeout_s=90)

    def one(self, query: str, *parameters: object) -> Any:
        """Return the first column of the query's only row."""
        return fetch_value(self.database_url, query, *parameters)

    def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Return all rows of the query."""
        return fetch(self.database_url, query, *parameters)

    def status(self, turn_id: UUID | None) -> str:
        """Return the turn's current status."""
        status: str = self.one("SELECT status FROM turns WHERE id = %s", turn_id)
        return status

    def tool(self, **fields: Any) -> dict[str, Any]:
        """Return a tool for `factories.tenant` that is mapped to the sandbox's server and needs no approval."""
        connected = {"integration": {"configuration": {"url": f"{self.sandbox_url}/tools/orders_lookup"}}}
        return {**TOOL, **connected, "configuration": {"approval": "never"}, **fields}

    def drained(self, within_s: float = 30) -> None:
        """Wait until no turn is open and no lease is left."""
        deadline = time.monotonic() + within_s
        query = (
            "SELECT (SELECT count(*) FROM turns WHERE status IN ('queued', 'running', 'waiting')),"
            " (SELECT count(*) FROM sessions WHERE lease_owner IS NOT NULL)"
        )
        while (left := self.rows(query)[0]) != (0, 0):
            assert time.monotonic() < deadline, f"open turns, leases: {left}\n{self.tails()}"
            time.sleep(0.05)

    def tails(self) -> str:
        """Return the last lines of every process's output, for a failure report."""
        return "\n".join(f"--- {process.popen.args!r}\n{process.log.read_text()[-1500:]}" for process in self._processes)


@contextlib.contextmanager
def running(stack: Stack) -> Iterator[Stack]:
    """Run the stack with its sandbox; end all processes on leaving."""
    try:
        stack.sandbox()
        yield stack
    finally:
        stack.close()
