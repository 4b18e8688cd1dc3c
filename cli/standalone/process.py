"""A part: one child process of `turnline up`, the demo or a test, that is launched, answers, may die, and is stopped."""

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

READY_WITHIN_S = 60.0
_LOG_KEEPS_BYTES = 10 * 1024 * 1024
_START_TRIES = 5

Steps = tuple[tuple[signal.Signals, float], ...]


class Identity(TypedDict, total=False):
    """Whom a child runs as, in the words of `subprocess.Popen`."""

    user: int
    group: int
    extra_groups: list[int]


class ManagedProcess(ABC):
    """One process and its log file. `launch` it, wait until it `answers`; after a death `launch` it again; `stop` it in order."""

    def __init__(self, name: str, log: Path, stop_steps: Steps, death_signal: signal.Signals) -> None:
        self.name = name
        self.log = log
        self._stop_steps = stop_steps
        self._death_signal = death_signal
        self._process: subprocess.Popen[bytes] | None = None
        self._log_from = 0

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """The process id, or None when it does not run."""
        return self._process.pid if self._process is not None and self.alive else None

    @property
    def alive(self) -> bool:
        """Whether the process runs. It may still be too busy to answer."""
        return self._process is not None and self._process.poll() is None

    @property
    def ending(self) -> str:
        """How the process ended, for a sentence: "exited with 1", "was killed by SIGKILL"."""
        code = self._process.returncode if self._process is not None else None
        if code is None:
            return "does not run"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"

    def start(self) -> Self:
        """Start it and return once it answers.

        Raises:
            SetupError: it does not start here; the text says why, with the end of its log.
        """
        if not self.alive:
            self.launch()
            wait_until_ready([self])
        return self

    @abstractmethod
    def launch(self) -> None:
        """Start the process and return at once. Call it from a thread that lives as long as the process should."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether it does its work now. Called often; takes little time while the answer is no."""

    def worth_another_try(self) -> bool:
        """Whether a death before the first answer was not its own fault."""
        return False

    def stop(self) -> None:
        """Stop it in order and return when it is gone. Harmless when it does not run."""
        process, self._process = self._process, None
        if process is not None:
            stop(process, *self._stop_steps)

    def hurry(self) -> None:
        """Kill it; `stop` then returns at once."""
        if self._process is not None:
            self._process.kill()

    def said(self) -> str:
        """What it has written to its log since it was launched last."""
        with contextlib.suppress(FileNotFoundError), self.log.open("rb") as log:
            log.seek(self._log_from)
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
        """Start `command` with its output in the log; returns its stdin where that is a pipe."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > _LOG_KEEPS_BYTES:
            self.log.replace(self.log.with_name(self.log.name + ".1"))
        with open(self.log, "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as log:
            self._log_from = log.seek(0, os.SEEK_END)
            self._process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=log,
                stderr=log,
                cwd=cwd,
                env=dict(env),
                start_new_session=True,  # Ctrl-C at the terminal is for whoever started us, who stops us in order
                preexec_fn=die_with_parent(self._death_signal),
                **(identity or {}),
            )
        return self._process.stdin


class Command(ManagedProcess):
    """A program of our own. `ready` is asked until it says yes; it gets the part, for its log.

    `death_signal` defaults to SIGKILL: everything of ours is safe to kill, and a warm stop without its servers would only hang.
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
        stop_steps: Steps = ((signal.SIGTERM, 10.0),),
        death_signal: signal.Signals = signal.SIGKILL,
    ) -> None:
        super().__init__(name, log, stop_steps, death_signal)
        self.command = tuple(command)
        self.env = env
        self.cwd = cwd
        self._ready = ready

    def launch(self) -> None:
        """Start the program."""
        self._popen(self.command, cwd=self.cwd, env=self.env)

    def answers(self) -> bool:
        """Whether it is ready."""
        return self.alive and self._ready(self)


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs `module` with this Python."""
    return [sys.executable, "-m", module, *arguments]


def log_says(words: str) -> Callable[[Command], bool]:
    """Ready once the log holds `words`."""
    return lambda part: words in part.said()


def http_ok(port: int, path: str, host: str = LOOPBACK, headers: Mapping[str, str] | None = None) -> Callable[[Command], bool]:
    """Ready once GET `path` with `headers` answers 2xx."""

    def ready(_: Command) -> bool:
        connection = http.client.HTTPConnection(host, port, timeout=5)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.request("GET", path, headers=dict(headers or {}))
            return 200 <= connection.getresponse().status < 300
        return False

    return ready


def wait_until_ready(
    parts: Sequence[ManagedProcess],
    *,
    within_s: float = READY_WITHIN_S,
    on_ready: Callable[[ManagedProcess], None] = lambda _: None,
    give_up: Callable[[], None] = lambda: None,
) -> None:
    """Return once every launched part of `parts` answers. `give_up` is called all the while and may raise.

    Raises:
        SetupError: one died or is late; the others are left as they are.
    """
    deadline = time.monotonic() + within_s
    waiting = list(parts)
    tries = dict.fromkeys(parts, 1)
    while waiting:
        give_up()
        for part in tuple(waiting):
            if part.answers():
                waiting.remove(part)
                on_ready(part)
            elif not part.alive:
                if tries[part] == _START_TRIES or not part.worth_another_try():
                    raise SetupError(f"{part.name} did not start: it {part.ending}. {_log_end(part)}")
                tries[part] += 1
                time.sleep(0.3)
                part.launch()
        if waiting and time.monotonic() > deadline:
            names = " and ".join(part.name for part in waiting)
            raise SetupError(f"{names} did not answer within {within_s:.0f} s. {_log_end(waiting[0])}")
        time.sleep(0.02)


def _log_end(part: ManagedProcess) -> str:
    words = tail(part.log)
    return f"The end of {part.log}:\n{words}" if words else f"Its log, {part.log}, is empty."
