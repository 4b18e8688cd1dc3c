"""What can happen to a process at a crash point: the rows of the table, each with what must be true afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class ProcessKind(Enum):
    """Whose process it happens to."""

    API = "api"
    WORKER = "worker"


class Event(Enum):
    """What the test does to something else, where the crash is not, or not only, this process's death."""

    NONE = "the process is killed"
    WAITING = "the process is killed when the other side has its request, and has not answered"
    BROKER_EMPTIED = "the process is killed, and the broker loses what it held"
    AGENT_CHANGED = "the process is killed, and the agent changed before the next attempt"
    CONNECTIONS_ENDED = "the database ends its connections in the middle of the write"
    REPLY_LOST = "the database commits the write, and the connection breaks before the reply"
    ASLEEP = "the process sleeps until another has taken the turn over, and wakes up after that"
    WOKEN_EARLY = "the process sleeps until another is in the middle of the turn, and wakes up then; the other is killed"
    BROKER_KILLED = "the broker is killed"


@dataclass(frozen=True, slots=True)
class Crash:
    """One crash: what TURNLINE_CRASH_AT is, and what else is done.

    When it alone happens in the first of two turns: `asked_again` is how many requests the model gets beyond the six of two undisturbed
    turns, `unsafe` the state in which the first turn's unsafe tool call ends, `refunds` how often that tool was asked (None: once or
    never), `attempts` how many the first turn takes.
    """

    name: str
    at: str
    where: ProcessKind = ProcessKind.WORKER
    event: Event = Event.NONE
    asked_again: int = 0
    unsafe: str = "succeeded"
    refunds: int | None = 1
    attempts: int = 2

    @property
    def survives(self) -> bool:
        """The process is not killed."""
        return self.event in (Event.CONNECTIONS_ENDED, Event.REPLY_LOST, Event.ASLEEP, Event.BROKER_KILLED)


# Each turn asks the model three times and uses an idempotent tool, then an unsafe one: what is reached the second time concerns the latter.
_TABLE = (
    Crash("intake.before_commit", "intake.before_commit", ProcessKind.API, attempts=1),
    Crash("intake.committed", "intake.committed", ProcessKind.API, attempts=1),
    Crash("intake.dispatched", "intake.dispatched", ProcessKind.API, attempts=1),
    Crash("dispatch.published", "dispatch.published", ProcessKind.API, attempts=1),
    Crash("dispatch.published dispatch lost", "dispatch.published", ProcessKind.API, Event.BROKER_EMPTIED, attempts=1),
    Crash("worker.message_received", "worker.message_received", attempts=1),
    Crash("turn.claimed", "turn.claimed"),
    Crash("model_call.before_send", "model_call.before_send"),
    Crash("model_call.answered", "model_call.answered", asked_again=1),
    Crash("model_call.answered waiting", "model_call.before_send:say", event=Event.WAITING, asked_again=1),
    Crash("model_call.committed", "model_call.committed"),
    Crash("tool_call.before_send", "tool_call.before_send"),
    Crash("tool_call.before_send unsafe", "tool_call.before_send:2", unsafe="unknown", refunds=0),
    Crash("tool_call.answered", "tool_call.answered"),
    Crash("tool_call.answered waiting", "tool_call.before_send:say", event=Event.WAITING),
    Crash("tool_call.answered unsafe", "tool_call.answered:2", unsafe="unknown"),
    Crash("tool_call.answered unsafe waiting", "tool_call.before_send:2:say", event=Event.WAITING, unsafe="unknown"),
    Crash("tool_call.committed", "tool_call.committed"),
    Crash("tool_call.committed unsafe", "tool_call.committed:2"),
    Crash("turn.before_final_commit", "turn.before_final_commit", asked_again=1),
    Crash("turn.final_commit", "turn.final_commit", attempts=1),
    Crash("worker.before_ack", "worker.before_ack", attempts=1),
    Crash("write.before_send connections ended", "write.before_send:stop", event=Event.CONNECTIONS_ENDED, attempts=1),
    Crash("write.before_send", "write.before_send", asked_again=1),
    Crash("write.committed reply lost", "write.before_send:2:stop", event=Event.REPLY_LOST, attempts=1),
    Crash("write.committed", "write.committed:2"),
    Crash("write.before_send asleep", "write.before_send:stop", event=Event.ASLEEP, asked_again=1),
    Crash("tool_call.before_send unsafe asleep", "tool_call.before_send:2:stop", event=Event.ASLEEP, unsafe="unknown", refunds=None),
    Crash("write.before_send woken early", "write.before_send:stop", event=Event.WOKEN_EARLY, asked_again=2, attempts=3),
    Crash("model_call.answered broker killed", "model_call.answered:stop", event=Event.BROKER_KILLED, attempts=1),
    Crash("tool_call.committed agent changed", "tool_call.committed", event=Event.AGENT_CHANGED),
    Crash("model_call.delta", "model_call.delta:3", asked_again=1),
)
CRASHES = {crash.name: crash for crash in _TABLE}
