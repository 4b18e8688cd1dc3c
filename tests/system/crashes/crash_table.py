"""The crashes that can happen to a process at a failpoint, each with its expected result."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class ProcessKind(Enum):
    """The kind of process that crashes."""

    API = "api"
    WORKER = "worker"


class Event(Enum):
    """The action of the test at the failpoint, for crashes that are more than, or other than, this process's death."""

    NONE = "the process is killed"
    UNANSWERED = "the process is killed while its request is unanswered"
    BROKER_EMPTIED = "the process is killed, and the broker loses its messages"
    AGENT_CHANGED = "the process is killed, and the agent is changed before the next attempt"
    CONNECTIONS_ENDED = "the database ends its connections in the middle of the write"
    REPLY_LOST = "the database commits the write, and the connection breaks before the reply"
    SUSPENDED = "the process is suspended until another has taken the turn over and finished it"
    RESUMED_EARLY = "the process is suspended until another is in the middle of the turn; then the other is killed"
    BROKER_KILLED = "the broker is killed"


@dataclass(frozen=True, slots=True)
class Crash:
    """One crash: the value of TURNLINE_CRASH_AT, and the test's further action.

    Expected if it is the only crash, in the first of two turns: `repeated_requests`, the requests to the model beyond the six of two
    undisturbed turns; `unsafe`, the final state of the first turn's unsafe tool call; `refunds`, the requests to that tool (None: one or
    none); `attempts`, the first turn's attempts.
    """

    name: str
    at: str
    where: ProcessKind = ProcessKind.WORKER
    event: Event = Event.NONE
    repeated_requests: int = 0
    unsafe: str = "succeeded"
    refunds: int | None = 1
    attempts: int = 2

    @property
    def survives(self) -> bool:
        """Return True if the process is not killed."""
        return self.event in (Event.CONNECTIONS_ENDED, Event.REPLY_LOST, Event.SUSPENDED, Event.BROKER_KILLED)


# Each turn calls the model three times, and an idempotent tool, then an unsafe one: a second hit of a failpoint is the unsafe tool's.
_TABLE = (
    Crash("intake.before_commit", "intake.before_commit", ProcessKind.API, attempts=1),
    Crash("intake.committed", "intake.committed", ProcessKind.API, attempts=1),
    Crash("intake.dispatched", "intake.dispatched", ProcessKind.API, attempts=1),
    Crash("dispatch.published", "dispatch.published", ProcessKind.API, attempts=1),
    Crash("dispatch.published dispatch lost", "dispatch.published", ProcessKind.API, Event.BROKER_EMPTIED, attempts=1),
    Crash("worker.message_received", "worker.message_received", attempts=1),
    Crash("turn.claimed", "turn.claimed"),
    Crash("model_call.before_send", "model_call.before_send"),
    Crash("model_call.answered", "model_call.answered", repeated_requests=1),
    Crash("model_call.answered waiting", "model_call.before_send:say", event=Event.UNANSWERED, repeated_requests=1),
    Crash("model_call.committed", "model_call.committed"),
    Crash("tool_call.before_send", "tool_call.before_send"),
    Crash("tool_call.before_send unsafe", "tool_call.before_send:2", unsafe="unknown", refunds=0),
    Crash("tool_call.answered", "tool_call.answered"),
    Crash("tool_call.answered waiting", "tool_call.before_send:say", event=Event.UNANSWERED),
    Crash("tool_call.answered unsafe", "tool_call.answered:2", unsafe="unknown"),
    Crash("tool_call.answered unsafe waiting", "tool_call.before_send:2:say", event=Event.UNANSWERED, unsafe="unknown"),
    Crash("tool_call.committed", "tool_call.committed"),
    Crash("tool_call.committed unsafe", "tool_call.committed:2"),
    Crash("turn.before_final_commit", "turn.before_final_commit", repeated_requests=1),
    Crash("turn.final_commit", "turn.final_commit", attempts=1),
    Crash("worker.before_ack", "worker.before_ack", attempts=1),
    Crash("write.before_send connections ended", "write.before_send:stop", event=Event.CONNECTIONS_ENDED, attempts=1),
    Crash("write.before_send", "write.before_send", repeated_requests=1),
    Crash("write.committed reply lost", "write.before_send:2:stop", event=Event.REPLY_LOST, attempts=1),
    Crash("write.committed", "write.committed:2"),
    Crash("write.before_send asleep", "write.before_send:stop", event=Event.SUSPENDED, repeated_requests=1),
    Crash("tool_call.before_send unsafe asleep", "tool_call.before_send:2:stop", event=Event.SUSPENDED, unsafe="unknown", refunds=None),
    Crash("write.before_send woken early", "write.before_send:stop", event=Event.RESUMED_EARLY, repeated_requests=2, attempts=3),
    Crash("model_call.answered broker killed", "model_call.answered:stop", event=Event.BROKER_KILLED, attempts=1),
    Crash("tool_call.committed agent changed", "tool_call.committed", event=Event.AGENT_CHANGED),
    Crash("model_call.delta", "model_call.delta:3", repeated_requests=1),
)
CRASHES = {crash.name: crash for crash in _TABLE}
