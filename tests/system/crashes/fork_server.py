"""Starts many workers and APIs sooner: has them forked by `fork_server_main`, which has loaded the libraries already."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from typing import Self

from tests.support.servers import ROOT, process_env
from tests.support.stack import Process, Stack


class Nursery:
    """A process that forks others. Ends them all when it ends."""

    def __enter__(self) -> Self:
        self._ordering = threading.Lock()  # one order at a time: who is born next is whom it asked for
        self._codes: dict[int, int] = {}  # by the child's number
        self._told = threading.Condition()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.system.crashes.fork_server_main"],
            cwd=ROOT,
            env=process_env(CELERY_CUSTOM_WORKER_POOL="worker.pool:TaskPool"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._born: list[tuple[int, int]] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def start(self, stack: Stack, *argv: str) -> Process:
        """As `stack.start`."""
        process = Process.__new__(Process)
        process.log = stack.directory / f"nursed-{argv[1]}.log"
        order = {"argv": argv, "env": stack.env, "log": str(process.log)}
        process.log.touch()
        assert self._process.stdin is not None
        with self._ordering, self._told:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
            assert self._told.wait_for(lambda: self._born, 60), "the nursery does not answer"
            process.popen = Child(self, *self._born.pop())  # type: ignore[assignment]
        stack._processes.append(process)
        return process

    def code(self, number: int, within_s: float | None = 0) -> int | None:
        """How a child ended; None where it has not within that time."""
        with self._told:
            self._told.wait_for(lambda: number in self._codes, within_s)
            return self._codes.get(number)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            with self._told:
                if "code" in told:
                    self._codes[told["number"]] = told["code"]
                else:
                    self._born.append((told["number"], told["pid"]))
                self._told.notify_all()


class Child:
    """As much of `subprocess.Popen` as the tests use."""

    def __init__(self, nursery: Nursery, number: int, pid: int) -> None:
        self._nursery, self._number, self.pid, self.args = nursery, number, pid, f"nursed {pid}"

    @property
    def returncode(self) -> int | None:
        return self._nursery.code(self._number)

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        code = self._nursery.code(self._number, timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
