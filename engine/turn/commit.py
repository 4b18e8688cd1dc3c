"""What one commit of a turn carries: what was learned, and the intent of what comes next."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from engine.enums import ModelCallState
from engine.events import Event, ModelReply, ToolOutcome
from engine.turn.context import Bound, Cost


@dataclass(frozen=True, slots=True)
class Reserved:
    """A model call whose ledger row exists: the `attempt`-th request of step `step`, both from 0."""

    step: int
    attempt: int


@dataclass(frozen=True, slots=True)
class SettledCall:
    """The outcome of a reserved model call, for its ledger row. `estimated`: its tokens are our count, the provider told none."""

    call: Reserved
    state: ModelCallState
    reply: ModelReply | None = None
    cost: Cost = field(default_factory=lambda: Cost(None, None))
    error_class: str | None = None
    latency_ms: int | None = None
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class ToolIntent:
    """A tool call about to be made. `idempotency_key` is sent with every attempt of it.

    With an `approval_hash` it is not made before a person has approved what hashes to it.
    """

    tool_call_id: str
    step: int
    position: int
    tool_id: UUID | None
    tool_name: str
    arguments: dict[str, Any] | None
    arguments_hash: str
    idempotency_key: str
    effect: str | None = None
    approval_hash: str | None = None


@dataclass(frozen=True, slots=True)
class ToolStart:
    """A tool call of an earlier commit that is begun now. `approval_hash`: of what is run, where it took an approval."""

    tool_call_id: str
    approval_hash: str | None = None


@dataclass(frozen=True, slots=True)
class ToolSettled:
    """The outcome of a tool call, for its row."""

    tool_call_id: str
    outcome: ToolOutcome


@dataclass(frozen=True, slots=True)
class Reserve:
    """The intent of a model call: its ledger row, before the request. `heard`: the last customer message known so far, by offset.

    `bound` is held against budgets. `again`: the row exists, and its hold becomes this.
    """

    call: Reserved
    provider: str
    model: str
    heard: int = -1
    bound: Bound | None = None
    again: bool = False


@dataclass(frozen=True, slots=True)
class Finish:
    """The turn has come to its end: `status` is done, failed or cancelled; the other two say why it is not done."""

    status: str
    error_class: str | None = None
    error_detail: str | None = None


@dataclass(frozen=True, slots=True)
class Park:
    """The turn rests for `wait_s` seconds and holds no worker. `refund`: this claim shall not count as an attempt.

    `for_approval`: it rests until somebody has decided about one of its tool calls, or the first approval expires.
    """

    wait_s: float
    refund: bool = False
    error_class: str | None = None
    error_detail: str | None = None
    for_approval: bool = False


Outcome = Finish | Park


@dataclass(frozen=True, slots=True)
class TurnCommit:
    """One commit: all of it is written, or nothing."""

    events: tuple[Event, ...] = ()
    model_call: SettledCall | None = None
    tool_results: tuple[ToolSettled, ...] = ()
    tool_calls: tuple[ToolIntent, ...] = ()
    starts: tuple[ToolStart, ...] = ()
    reserve: Reserve | None = None
    rest: Outcome | None = None


@dataclass(frozen=True, slots=True)
class CommitResult:
    """What a commit brought back: with `reserve`, the customer's messages that arrived meanwhile and must be read by that call.

    `read_through` is the offset of the last customer message that the reserved call reads. `stop` says why the turn must not go on
    (see `CancelToken`); nothing that the change intended was begun then. `refused` says which budget has no room for the reserved call.
    `outcome` is how the turn ended or was parked by this commit, as the database wrote it; None while it goes on.
    """

    news: tuple[Event, ...] = ()
    read_through: int | None = None
    stop: str | None = None
    refused: str | None = None
    outcome: Outcome | None = None
