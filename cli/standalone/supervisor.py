"""The supervisor: starts processes, restarts those that die, and stops all of them in order."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from cli.errors import SetupError
from cli.standalone.process import READY_TIMEOUT_S, Command, ManagedProcess, wait_until_ready
from cli.standalone.process_utils import tail

FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0
STABLE_AFTER_S = 60.0  # a process that ran this long starts again with the first back-off
_POLL_INTERVAL_S = 0.1


class StopRequested(Exception):
    """Raised out of a wait when a signal has asked for a stop."""


@dataclass
class _Supervised:
    """A process and the state of its restarts. Times are of `time.monotonic`."""

    process: ManagedProcess
    backoff_s: float = FIRST_BACKOFF_S
    launched_at: float = 0.0
    restart_at: float | None = None
    ready_again: bool = True  # False between a restart and the first successful readiness check


class Supervisor:
    """Runs processes as children of the calling thread, which must be the main thread.

    `report` is called with short lines for the terminal. Processes started by one `start` stop together; the last started
    stop first.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self.report = report
        self._groups: list[list[_Supervised]] = []
        self._stop_requested = False
        self._stopping = False
        self._raise_on_signal = False

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Treat Ctrl-C, SIGTERM and SIGHUP inside the block as a request to stop; a second one kills processes still stopping."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Raise `StopRequested` inside the block as soon as a stop is requested, even during a blocking call. Needs `signals`."""
        self.raise_if_stop_requested()
        self._raise_on_signal = True
        try:
            yield
        finally:
            self._raise_on_signal = False

    def start(self, *processes: ManagedProcess, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Launch `processes` and return when all of them are ready. They will be stopped together.

        Raises:
            SetupError: one of them did not start.
            StopRequested: a stop was requested meanwhile.
        """
        self.start_groups(processes, timeout_s=timeout_s)

    def start_groups(self, *groups: Sequence[ManagedProcess], timeout_s: float = READY_TIMEOUT_S) -> None:
        """Launch the processes of all groups at once, as `start` does. They will be stopped group by group, the last group first."""
        for group in groups:
            supervised = [_Supervised(process) for process in group]
            self._groups.append(supervised)
            for one in supervised:
                self.raise_if_stop_requested()
                one.process.launch()
                one.launched_at = time.monotonic()
        processes = [process for group in groups for process in group]
        wait_until_ready(processes, timeout_s=timeout_s, on_poll=self.raise_if_stop_requested)

    def run_once(self, command: Command, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Run `command` and return when it has exited with 0.

        Raises:
            SetupError: it failed or took longer than `timeout_s`.
            StopRequested: a stop was requested meanwhile.
        """
        deadline = time.monotonic() + timeout_s
        command.launch()
        try:
            while command.alive:
                self.raise_if_stop_requested()
                if time.monotonic() > deadline:
                    raise SetupError(f"{command.name} took longer than {timeout_s:.0f} s. Its log is {command.log}.")
                time.sleep(_POLL_INTERVAL_S / 5)
            if command.exit_description != "exited with 0":
                raise SetupError(f"{command.name} {command.exit_description}. The end of {command.log}:\n{tail(command.log)}")
        finally:
            command.stop()

    def keep_running(self) -> None:
        """Restart processes that die, with exponential back-off, until a stop is requested."""
        while not self._stop_requested:
            for supervised in self._all():
                self._restart_if_dead(supervised)
            time.sleep(_POLL_INTERVAL_S)

    def raise_if_stop_requested(self) -> None:
        """Raise `StopRequested` if a stop was requested."""
        if self._stop_requested:
            raise StopRequested

    def stop(self, *, kill: bool = False) -> None:
        """Stop every process, group by group, the last started first. Returns when all have ended.

        With `kill` our own programs get SIGKILL, which loses no committed work; the servers still stop in order.
        """
        self._stopping = True
        if kill:
            for supervised in self._all():
                if isinstance(supervised.process, Command):
                    supervised.process.send_kill()
        for group in reversed(self._groups):
            with ThreadPoolExecutor(len(group) or 1) as executor:
                list(executor.map(lambda supervised: supervised.process.stop(), group))
        self._groups.clear()

    def _restart_if_dead(self, supervised: _Supervised) -> None:
        process, now = supervised.process, time.monotonic()
        if process.alive:
            if not supervised.ready_again and process.is_ready():
                supervised.ready_again = True
                self.report(f"{process.name} runs again (process {process.pid}).")
            return
        if supervised.restart_at is None:
            if now - supervised.launched_at > STABLE_AFTER_S:
                supervised.backoff_s = FIRST_BACKOFF_S
            supervised.restart_at = now + supervised.backoff_s
            self.report(f"{process.name} {process.exit_description}; restarting it in {supervised.backoff_s:g} s. Its log: {process.log}")
            supervised.backoff_s = min(supervised.backoff_s * 2, MAX_BACKOFF_S)
        elif now >= supervised.restart_at:
            supervised.restart_at, supervised.launched_at, supervised.ready_again = None, now, False
            try:
                process.launch()
            except (SetupError, OSError, subprocess.SubprocessError) as error:
                self.report(f"{process.name} does not start: {error}")

    def _all(self) -> list[_Supervised]:
        return [supervised for group in self._groups for supervised in group]

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        first, self._stop_requested = not self._stop_requested, True
        if self._stopping:
            for supervised in self._all():
                supervised.process.send_kill()
        elif first:
            self.report("Stopping. Running turns may finish; a second Ctrl-C stops them now, and they resume at the next start.")
            if self._raise_on_signal:
                raise StopRequested
