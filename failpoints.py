"""Failpoints: named places where a test can kill or stop this process. A normal start refuses to run with one armed.

    TURNLINE_CRASH_TEST=this-process-may-be-killed TURNLINE_CRASH_AT=model_call.before_send turnline worker

`TURNLINE_CRASH_AT` is NAME[:NTH][:ACTION]. NTH (default 1) counts how often the failpoint is reached. ACTION is `kill` (default, SIGKILL),
`stop` (SIGSTOP, until a test sends SIGCONT) or `say` (only report, so that a test can kill the process afterwards). The process
first writes one line to standard error.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

AT = "TURNLINE_CRASH_AT"
CONSENT = "TURNLINE_CRASH_TEST"
CONSENTED = "this-process-may-be-killed"
ACTIONS = ("kill", "stop", "say")


FAILPOINTS = {
    "intake.before_commit": "a message was received, nothing is committed",
    "intake.committed": "the message is committed, its turn is not dispatched",
    "intake.dispatched": "the turn is dispatched, the sender has no answer yet",
    "dispatch.published": "the dispatch is published, the turn is not marked as dispatched",
    "worker.message_received": "a worker received a turn's id, nothing is claimed",
    "turn.claimed": "the claim is committed, nothing else is done",
    "model_call.before_send": "the model call is reserved, the request is not sent",
    "model_call.answered": "the provider answered, the answer is not committed",
    "model_call.committed": "the result of a model call is committed",
    "model_call.delta": "a piece of a streamed reply was handed to the publisher",
    "tool_call.before_send": "the tool call is committed as running, the request is not sent",
    "tool_call.answered": "the tool answered, the answer is not committed",
    "tool_call.committed": "the results of tool calls are committed",
    "write.before_send": "any commit of a turn is about to be sent",
    "write.committed": "any commit of a turn is done, its reply is not read",
    "turn.before_final_commit": "the commit that ends the turn is about to be sent",
    "turn.final_commit": "the turn has ended, the worker has not gone on",
    "worker.before_ack": "the turn was run, its broker message is not acknowledged",
}


class NotArmed(ValueError):
    """The environment arms a failpoint incorrectly. The message is shown to the user."""


@dataclass(slots=True)
class Armed:
    """The failpoint armed in this process: do `action` the `nth` time it is reached."""

    name: str
    nth: int
    action: str
    _times: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def reached(self) -> None:
        """Count one pass, and act on the `nth`."""
        if next(self._times) != self.nth:
            return
        os.write(2, f"{log_line(self.name, self.nth, self.action)}\n".encode())
        match self.action:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":  # to this thread: sent to the process, another thread may take it while this one runs on
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def log_line(name: str, nth: int, action: str) -> str:
    """Return the line that is written to standard error when an armed failpoint is reached."""
    return f"failpoint {name} reached, time {nth}: {action}"


def armed(environ: Mapping[str, str]) -> Armed | None:
    """Return the failpoint that `environ` arms, or None.

    Raises:
        NotArmed: the consent variable is missing, or the failpoint, count or action is unknown.
    """
    value = environ.get(AT, "").strip()
    if not value:
        return None
    if environ.get(CONSENT) != CONSENTED:
        raise NotArmed(f"{AT} is set: it kills this process on purpose and is for tests only. Unset it.")
    name, *rest = value.split(":")
    if name not in FAILPOINTS:
        raise NotArmed(f"{AT} names an unknown failpoint: {name[:40]!r}. Known failpoints: {', '.join(FAILPOINTS)}.")
    nth = int(rest.pop(0)) if rest and rest[0].isdecimal() else 1
    action = rest.pop(0) if rest else "kill"
    if rest or nth < 1 or action not in ACTIONS:
        raise NotArmed(f"{AT} must be NAME[:NTH][:{'|'.join(ACTIONS)}] with NTH from 1; it is {value[:60]!r}.")
    return Armed(name, nth, action)


def refuse_a_normal_start() -> None:
    """Exit with a message if the environment arms a failpoint incorrectly or without consent."""
    try:
        armed(os.environ)
    except NotArmed as refusal:
        sys.exit(str(refusal))


def _armed_in_this_process() -> Armed | None:
    try:
        return armed(os.environ)
    except NotArmed:
        return None  # each entry point reports it (refuse_a_normal_start); importing this module must not fail


_armed = _armed_in_this_process()


def failpoint(name: str) -> None:
    """Mark a place in the code. Does nothing unless this process was started with this failpoint armed."""
    if _armed is not None and _armed.name == name:
        _armed.reached()
