"""Managed processes: child processes of `turnline up`, the demo or a test, with a log file, a readiness check and an orderly stop."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Self, TypedDict

from cli.errors import SetupError
from cli.standalone.process_utils import LOOPBACK, die_with_parent, stop, tail

READY_TIMEOUT_S = 60.0
_MAX_LOG_BYTES = 10 * 1024 * 1024
_MAX_START_ATTEMPTS = 5

StopSteps = tuple[tuple[signal.Signals, float], ...]
"""Signals to send in turn, each with the seconds to wait before the next."""


class Identity(TypedDict, total=False):
    """The user a child process runs as, as arguments of `subprocess.Popen`."""

    user: int
    group: int
    extra_groups: list[int]


class ManagedProcess(ABC):
    """A child process and its log file.

    Call `launch`, then wait until `is_ready`. If the process dies, call `launch` again. `stop` ends it in order.
    """

    def __init__(self, name: str, log: Path, stop_steps: StopSteps, death_signal: signal.Signals) -> None:
        self.name = name
        self.log = log
        self._stop_steps = stop_steps
        self._death_signal = death_signal
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """The process id, or None if the process is not running."""
        return self._process.pid if self._process is not None and self.alive else None

    @property
    def alive(self) -> bool:
        """True while the process runs, even if it does not answer yet."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_description(self) -> str:
        """How the process ended, as a verb phrase: "exited with 1", "was killed by SIGKILL" or "does not run"."""
        code = self._process.returncode if self._process is not None else None
        if code is None:
            return "does not run"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"

    def start(self) -> Self:
        """Launch the process if it is not running, and return when it is ready.

        Raises:
            SetupError: the process did not start; the text gives the reason and the end of its log.
        """
        if not self.alive:
            self.launch()
            wait_until_ready([self])
        return self

    @abstractmethod
    def launch(self) -> None:
        """Start the process and return at once. Call this from a thread that lives as long as the process should."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Return True if the process does its work now. Polled often, so a negative answer must be quick."""

    def should_retry_start(self) -> bool:
        """Return True if the process died during its start for a reason outside it, so that another attempt may succeed."""
        return False

    def stop(self) -> None:
        """Stop the process in order and return when it has ended. Does nothing if it is not running."""
        process, self._process = self._process, None
        if process is not None:
            stop(process, *self._stop_steps)

    def send_kill(self) -> None:
        """Send SIGKILL. A `stop` that is waiting then returns at once."""
        if self._process is not None:
            self._process.kill()

    def log_output(self) -> str:
        """Return the text the process has logged since its last launch."""
        with contextlib.suppress(FileNotFoundError), self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")
        return ""

    def _popen(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdin: int = subprocess.DEVNULL,
        identity: Identity | None = None,
    ) -> IO[bytes] | None:
        """Start `command` with its output appended to the log. Returns its stdin if that is a pipe."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > _MAX_LOG_BYTES:
            self.log.replace(self.log.with_name(self.log.name + ".1"))
        with open(self.log, "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as log:
            self._log_start = log.seek(0, os.SEEK_END)
            self._process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=log,
                stderr=log,
                cwd=cwd,
                env=dict(env),
                start_new_session=True,  # Ctrl-C reaches only the parent, which then stops its children in order
                preexec_fn=die_with_parent(self._death_signal),
                **(identity or {}),
            )
        return self._process.stdin


class Command(ManagedProcess):
    """One of our own programs. `ready` is called with this object until it returns True.

    `death_signal` defaults to SIGKILL: our programs are safe to kill, and a warm stop without their servers would hang.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        log: Path,
        ready: Callable[[Command], bool],
        stop_steps: StopSteps = ((signal.SIGTERM, 10.0),),
        death_signal: signal.Signals = signal.SIGKILL,
    ) -> None:
        super().__init__(name, log, stop_steps, death_signal)
        self.command = tuple(command)
        self.env = env
        self.cwd = cwd
        self._ready = ready

    def launch(self) -> None:
        """Start the program and return at once."""
        self._popen(self.command, cwd=self.cwd, env=self.env)

    def is_ready(self) -> bool:
        """Return True if the program runs and its `ready` check succeeds."""
        return self.alive and self._ready(self)


def python(module: str, *arguments: str) -> list[str]:
    """Return the command that runs `module` with this Python."""
    return [sys.executable, "-m", module, *arguments]


def log_contains(text: str) -> Callable[[Command], bool]:
    """Return a readiness check: the log contains `text`."""
    return lambda process: text in process.log_output()


def http_ok(port: int, path: str, host: str = LOOPBACK, headers: Mapping[str, str] | None = None) -> Callable[[Command], bool]:
    """Return a readiness check: GET `path` with `headers` returns a 2xx status."""

    def ready(_: Command) -> bool:
        connection = http.client.HTTPConnection(host, port, timeout=5)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.request("GET", path, headers=dict(headers or {}))
            return 200 <= connection.getresponse().status < 300
        return False

    return ready


def wait_until_ready(
    processes: Sequence[ManagedProcess], *, timeout_s: float = READY_TIMEOUT_S, on_poll: Callable[[], None] = lambda: None
) -> None:
    """Return when every launched process is ready. `on_poll` is called in each round of the wait and may raise to end it.

    Raises:
        SetupError: a process died or was not ready within `timeout_s`; the others keep running.
    """
    deadline = time.monotonic() + timeout_s
    pending = list(processes)
    attempts = dict.fromkeys(processes, 1)
    while pending:
        on_poll()
        for process in tuple(pending):
            if process.is_ready():
                pending.remove(process)
            elif not process.alive:
                if attempts[process] == _MAX_START_ATTEMPTS or not process.should_retry_start():
                    raise SetupError(f"{process.name} did not start: it {process.exit_description}. {_end_of_log(process)}")
                attempts[process] += 1
                time.sleep(0.3)
                process.launch()
        if pending and time.monotonic() > deadline:
            names = " and ".join(process.name for process in pending)
            raise SetupError(f"{names} did not answer within {timeout_s:.0f} s. {_end_of_log(pending[0])}")
        time.sleep(0.02)


def _end_of_log(process: ManagedProcess) -> str:
    text = tail(process.log)
    return f"The end of {process.log}:\n{text}" if text else f"Its log, {process.log}, is empty."
