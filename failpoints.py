"""The places at which a test may have this process killed, and the switch for it, which a normal start refuses.

    TURNLINE_CRASH_TEST=this-process-may-be-killed TURNLINE_CRASH_AT=C7 turnline worker

`TURNLINE_CRASH_AT` is POINT, or POINT:NTH (the NTH time it is reached, from 1), with an action after it: POINT:kill, POINT:2:stop.
`kill` (the default) is SIGKILL; `stop` is SIGSTOP, for a test to break something and send SIGCONT; `say` is neither, for a test to
kill the process while what follows is under way. First the process says on its standard error which point was reached.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, unique

AT = "TURNLINE_CRASH_AT"
CONSENT = "TURNLINE_CRASH_TEST"
CONSENTED = "this-process-may-be-killed"
ACTIONS = ("kill", "stop", "say")
NO_SUCH_PLACE = {"C22": "there are no webhooks yet"}


@unique
class Point(Enum):
    """Where a point is."""

    C1 = "intake: before its commit"
    C2 = "intake: committed, not rung"
    C3 = "intake: committed and rung, the sender not answered"
    C4 = "ringing: published, the turn not marked as rung"
    C5 = "worker: ring received, nothing claimed"
    C6 = "worker: lease taken, nothing done"
    C7 = "model call: its intent committed, the request not sent"
    C8 = "model call: answered, the answer not committed"
    C9 = "model call: its result committed"
    C10 = "tool call: its intent committed, the request not sent"
    C11 = "tool call: answered, the answer not committed"
    C12 = "tool call: its result committed"
    C13 = "turn: before the final commit"
    C14 = "turn: final commit done, the worker goes on"
    C15 = "worker: turn carried, ring not acknowledged"
    C16 = "any write of a turn: about to be sent (for breaking the database under it)"
    C17 = "any write of a turn: committed, its reply unread"
    C18 = "any write of a turn: about to be sent (for sleeping past the lease)"
    C19 = "model call: answered, the answer not committed (for breaking the broker under it)"
    C20 = "tool call: its result committed (for changing the agent before the next attempt)"
    C21 = "model call: a piece of its text handed to whoever listens"


class NotArmed(ValueError):
    """The environment asks for a crash in a way that is refused. The text is a sentence for the person at the terminal."""


@dataclass(slots=True)
class Armed:
    """What this process is to do when it reaches `point` for the `nth` time."""

    point: Point
    nth: int
    action: str
    _times: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def reached(self) -> None:
        """Count, and act when the count is right."""
        if next(self._times) != self.nth:
            return
        os.write(2, f"{said(self.point, self.nth, self.action)}\n".encode())
        match self.action:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":  # to this thread: sent to the process, another thread may take it while this one runs on
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def said(point: Point, nth: int, action: str) -> str:
    """The line on standard error by which a test knows that the point was reached."""
    return f"crash point {point.name} reached, time {nth}: {action}"


def armed(environ: Mapping[str, str]) -> Armed | None:
    """What `environ` asks for; None where it asks for nothing.

    Raises:
        NotArmed: it asks without saying that this is a test, or for a point or an action that does not exist.
    """
    asked = environ.get(AT, "").strip()
    if not asked:
        return None
    if environ.get(CONSENT) != CONSENTED:
        raise NotArmed(f"{AT} is set: this process would be killed in the middle of its work. It is for tests only; unset it.")
    name, *rest = asked.split(":")
    if name in NO_SUCH_PLACE:
        raise NotArmed(f"{AT} names {name}, which is nowhere: {NO_SUCH_PLACE[name]}.")
    if name not in Point.__members__:
        raise NotArmed(f"{AT} names no crash point: {name[:20]!r}. There are {', '.join(Point.__members__)}.")
    nth = int(rest.pop(0)) if rest and rest[0].isdecimal() else 1
    action = rest.pop(0) if rest else "kill"
    if rest or nth < 1 or action not in ACTIONS:
        raise NotArmed(f"{AT} is POINT[:NTH][:{'|'.join(ACTIONS)}], NTH from 1; it is {asked[:40]!r}.")
    return Armed(Point[name], nth, action)


def refuse_a_normal_start() -> None:
    """End the process, with a sentence, where its environment asks for a crash without saying that this is a test."""
    try:
        armed(os.environ)
    except NotArmed as refusal:
        sys.exit(str(refusal))


def _of_this_process() -> Armed | None:
    try:
        return armed(os.environ)
    except NotArmed:
        return None  # every way to start says so; a library that merely imports this must not fail


_armed = _of_this_process()


def reached(point: Point) -> None:
    """Say that this process is at `point`: nothing happens, unless a test has asked for it."""
    if _armed is not None and _armed.point is point:
        _armed.reached()
