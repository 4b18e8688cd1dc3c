"""Starts the product's processes four times as fast: forks them from a process that has loaded the libraries already.

There is one fork server per pytest process, started when it is first needed. `start` is like `subprocess.Popen` and `run` like
`subprocess.run`, for `python -m MODULE …` only. Tests of how the product starts (compose, `turnline up`, failpoints) do without it.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from tests.support.servers import ROOT, process_env

READ_ON_IMPORT = {"REMAP_SIGTERM"}  # by Celery: a process that shall see it must be executed


@functools.cache
def fork_server() -> ForkServer:
    """Return this process's fork server."""
    server = ForkServer()
    atexit.register(server.close)
    return server


class ForkServer:
    """A process that forks others, and kills those that are left when it ends."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="turnline-fork-server-")
        self._numbers = itertools.count()
        self._ordering = threading.Lock()  # one order at a time, so that the next reported child is that of the order
        self._exit_codes: dict[int, int] = {}  # by the child's number
        self._reported = threading.Condition()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.fork_server_main"],
            cwd=ROOT,
            env=process_env(CELERY_CUSTOM_WORKER_POOL="worker.pool:TaskPool", PYTHONIOENCODING="utf-8"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._started: list[tuple[int, int]] = []
        self._reader = threading.Thread(target=self._read, name="fork server", daemon=True)
        self._reader.start()

    def close(self) -> None:
        """End the server and its children."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._reader.join()
        self._process.stdout.close()
        self._directory.cleanup()

    def start(self, argv: tuple[str, ...], env: dict[str, str], *, cwd: Path = ROOT, log: Path | None = None) -> Child:
        """Start `python ARGV`, where `argv` begins with `-m`; its output is appended to `log`, or kept for `communicate`."""
        assert argv[0] == "-m", argv
        assert not READ_ON_IMPORT & env.keys(), "the libraries are loaded: they would not see these variables"
        number = next(self._numbers)
        stdout, stderr = (log or Path(self._directory.name, f"{number}.{name}") for name in ("stdout", "stderr"))
        order = {"argv": argv, "env": env, "cwd": str(cwd), "stdout": str(stdout), "stderr": str(stderr)}
        assert self._process.stdin is not None
        with self._ordering, self._reported:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
            assert self._reported.wait_for(lambda: self._started, 60), "the fork server does not answer"
            return Child(self, argv, *self._started.pop(), stdout, stderr)

    def run(self, argv: tuple[str, ...], env: dict[str, str], *, cwd: Path, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run `python ARGV` to its end and return its exit code and output.

        Raises:
            subprocess.TimeoutExpired: it did not end in time, and has been killed.
        """
        child = self.start(argv, env, cwd=cwd)
        try:
            stdout, stderr = child.communicate(timeout_s)
        except subprocess.TimeoutExpired:
            child.kill()
            raise
        return subprocess.CompletedProcess(argv, child.wait(), stdout, stderr)

    def exit_code(self, number: int, within_s: float | None = 0) -> int | None:
        """Return a child's exit code, or None if it has not ended within that time."""
        with self._reported:
            self._reported.wait_for(lambda: number in self._exit_codes, within_s)
            return self._exit_codes.get(number)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            report = json.loads(line)
            with self._reported:
                if "code" in report:
                    self._exit_codes[report["number"]] = report["code"]
                else:
                    self._started.append((report["number"], report["pid"]))
                self._reported.notify_all()


class Child:
    """A forked process, with as much of `subprocess.Popen` as the tests use."""

    def __init__(self, server: ForkServer, argv: tuple[str, ...], number: int, pid: int, stdout: Path, stderr: Path) -> None:
        self._server, self._number, self.pid, self.args = server, number, pid, argv
        self._stdout, self._stderr = stdout, stderr

    @property
    def returncode(self) -> int | None:
        return self._server.exit_code(self._number)

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        code = self._server.exit_code(self._number, timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait until it ends, and return what it wrote to standard output and standard error."""
        self.wait(timeout)
        return self._stdout.read_text(encoding="utf-8"), self._stderr.read_text(encoding="utf-8")

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
