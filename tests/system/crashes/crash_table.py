"""What can happen to a process at a crash point: the rows of the table, each with what must be true afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Where(Enum):
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
    where: Where = Where.WORKER
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
    Crash("C1", "C1", Where.API, attempts=1),
    Crash("C2", "C2", Where.API, attempts=1),
    Crash("C3", "C3", Where.API, attempts=1),
    Crash("C4", "C4", Where.API, attempts=1),
    Crash("C4 ring lost", "C4", Where.API, Event.BROKER_EMPTIED, attempts=1),
    Crash("C5", "C5", attempts=1),
    Crash("C6", "C6"),
    Crash("C7", "C7"),
    Crash("C8", "C8", asked_again=1),
    Crash("C8 waiting", "C7:say", event=Event.WAITING, asked_again=1),
    Crash("C9", "C9"),
    Crash("C10", "C10"),
    Crash("C10 unsafe", "C10:2", unsafe="unknown", refunds=0),
    Crash("C11", "C11"),
    Crash("C11 waiting", "C10:say", event=Event.WAITING),
    Crash("C11 unsafe", "C11:2", unsafe="unknown"),
    Crash("C11 unsafe waiting", "C10:2:say", event=Event.WAITING, unsafe="unknown"),
    Crash("C12", "C12"),
    Crash("C12 unsafe", "C12:2"),
    Crash("C13", "C13", asked_again=1),
    Crash("C14", "C14", attempts=1),
    Crash("C15", "C15", attempts=1),
    Crash("C16", "C16:stop", event=Event.CONNECTIONS_ENDED, attempts=1),
    Crash("C16 died", "C16", asked_again=1),
    Crash("C17", "C16:2:stop", event=Event.REPLY_LOST, attempts=1),
    Crash("C17 died", "C17:2"),
    Crash("C18", "C18:stop", event=Event.ASLEEP, asked_again=1),
    Crash("C18 unsafe", "C10:2:stop", event=Event.ASLEEP, unsafe="unknown", refunds=None),
    Crash("C18 mid-turn", "C18:stop", event=Event.WOKEN_EARLY, asked_again=2, attempts=3),
    Crash("C19", "C19:stop", event=Event.BROKER_KILLED, attempts=1),
    Crash("C20", "C20", event=Event.AGENT_CHANGED),
    Crash("C21", "C21:3", asked_again=1),
)
CRASHES = {crash.name: crash for crash in _TABLE}
