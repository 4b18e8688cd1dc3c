"""Keeps parts running: starts them, restarts what died, stops everything in order, leaves nothing behind."""

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
from cli.standalone.process import READY_WITHIN_S, Command, ManagedProcess, wait_until_ready
from cli.standalone.process_utils import tail

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
STEADY_AFTER_S = 60.0  # a part that has run this long starts from the first pause again
_TICK_S = 0.1


class Stopped(Exception):
    """A stop was asked for while something was being waited for."""


@dataclass
class _Life:
    """What became of one part."""

    part: ManagedProcess
    pause_s: float = FIRST_PAUSE_S
    launched_at: float = 0.0
    launch_at: float | None = None  # when to launch it again
    came_back: bool = True  # whether it has answered since


class Supervisor:
    """Runs parts as children of the thread that calls it, which must be the main thread.

    `say` gets short lines for the terminal. Parts started by one `start` come up together; the last started is stopped first.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self._stages: list[list[_Life]] = []
        self._stop_asked = False
        self._stopping = False
        self._raise_at_once = False

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Within this, Ctrl-C, SIGTERM and SIGHUP ask for a stop; a second one kills what is still stopping."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within this (inside `signals`), a stop that is asked for raises `Stopped` at once, whatever is being waited for."""
        self.check()
        self._raise_at_once = True
        try:
            yield
        finally:
            self._raise_at_once = False

    def start(self, *parts: ManagedProcess, within_s: float = READY_WITHIN_S) -> None:
        """Launch `parts` and return once each answers; they will be stopped together.

        Raises:
            SetupError: one of them does not start.
            Stopped: a stop was asked for meanwhile.
        """
        self.start_stages(parts, within_s=within_s)

    def start_stages(self, *stages: Sequence[ManagedProcess], within_s: float = READY_WITHIN_S) -> None:
        """Launch the parts of all `stages` at once, as `start` does; they will be stopped stage by stage, the last first."""
        parts = [part for stage in stages for part in stage]
        for stage in stages:
            lives = [_Life(part) for part in stage]
            self._stages.append(lives)
            for life in lives:
                self.check()
                life.part.launch()
                life.launched_at = time.monotonic()
        wait_until_ready(parts, within_s=within_s, give_up=self.check)

    def run_once(self, part: Command, within_s: float = READY_WITHIN_S) -> None:
        """Run `part` to its end.

        Raises:
            SetupError: it failed or took too long.
            Stopped: a stop was asked for meanwhile.
        """
        deadline = time.monotonic() + within_s
        part.launch()
        try:
            while part.alive:
                self.check()
                if time.monotonic() > deadline:
                    raise SetupError(f"{part.name} took longer than {within_s:.0f} s. Its log is {part.log}.")
                time.sleep(_TICK_S / 5)
            if part.ending != "exited with 0":
                raise SetupError(f"{part.name} {part.ending}. The end of {part.log}:\n{tail(part.log)}")
        finally:
            part.stop()

    def watch(self) -> None:
        """Restart whatever dies, after a pause that doubles, until a stop is asked for."""
        while not self._stop_asked:
            for life in self._lives():
                self._look_after(life)
            time.sleep(_TICK_S)

    def check(self) -> None:
        """Raise `Stopped` if a stop was asked for."""
        if self._stop_asked:
            raise Stopped

    def stop(self, *, at_once: bool = False) -> None:
        """Stop every part, stage by stage, the last started first. Returns when nothing runs.

        With `at_once` our own programs are killed, which loses nothing that counts; servers stop in order all the same.
        """
        self._stopping = True
        if at_once:
            for life in self._lives():
                if isinstance(life.part, Command):
                    life.part.hurry()
        for stage in reversed(self._stages):
            with ThreadPoolExecutor(len(stage) or 1) as together:
                list(together.map(lambda life: life.part.stop(), stage))
        self._stages.clear()

    def _look_after(self, life: _Life) -> None:
        part, now = life.part, time.monotonic()
        if part.alive:
            if not life.came_back and part.answers():
                life.came_back = True
                self.say(f"{part.name} runs again (process {part.pid}).")
            return
        if life.launch_at is None:
            life.pause_s = FIRST_PAUSE_S if now - life.launched_at > STEADY_AFTER_S else life.pause_s
            life.launch_at = now + life.pause_s
            self.say(f"{part.name} {part.ending}; starting it again in {life.pause_s:g} s. Its log: {part.log}")
            life.pause_s = min(life.pause_s * 2, LONGEST_PAUSE_S)
        elif now >= life.launch_at:
            life.launch_at, life.launched_at, life.came_back = None, now, False
            try:
                part.launch()
            except (SetupError, OSError, subprocess.SubprocessError) as error:
                self.say(f"{part.name} does not start: {error}")

    def _lives(self) -> Sequence[_Life]:
        return [life for stage in self._stages for life in stage]

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        first, self._stop_asked = not self._stop_asked, True
        if self._stopping:
            for life in self._lives():
                life.part.hurry()
        elif first:
            self.say("Stopping. Turns in progress may finish; a second Ctrl-C ends them now, and the next start takes them up.")
            if self._raise_at_once:
                raise Stopped
