"""The API as a process, started as an operator starts it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.support.fork_server import fork_server
from tests.support.servers import SECRET_KEY, free_port, process_env, until


class Served:
    """A uvicorn process and its output."""

    def __init__(self, log: Path, **env: str) -> None:
        self.port, self.log = free_port(), log
        self.url = f"http://127.0.0.1:{self.port}"
        argv = ("-m", "uvicorn", "api.app:app", "--port", str(self.port), "--timeout-graceful-shutdown", "5")
        log.write_bytes(b"")
        self.process = fork_server().start(argv, process_env(**env), log=log)

    def ready(self) -> bool:
        """Return True if it answers; fail the test if it has ended."""
        assert self.process.poll() is None, self.log.read_text()
        try:
            return httpx.get(f"{self.url}/readyz", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def stop(self, number: int = signal.SIGTERM, within_s: float = 15) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(within_s)


@contextmanager
def served(log: Path, database_url: str, broker_url: str, **env: str) -> Iterator[Served]:
    """Run the API's process; it is ready on entry and ended on exit."""
    given = {"DATABASE_URL": database_url, "CELERY_BROKER_URL": broker_url, "TURNLINE_SECRET_KEYS": SECRET_KEY}
    process = Served(log, **(given | env))
    try:
        until(process.ready, 30)
        yield process
    finally:
        if process.process.poll() is None:
            process.process.kill()
        process.process.wait()
