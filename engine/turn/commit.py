"""One commit of a turn (what was learned and the intent of the next step), and what the database answers to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from engine.enums import ModelCallState
from engine.events import Event, ModelReply, ToolOutcome
from engine.turn.context import Bound, Cost


@dataclass(frozen=True, slots=True)
class Reserved:
    """A model call that has a row in the ledger: request number `attempt` of step `step`, both counted from 0."""

    step: int
    attempt: int


@dataclass(frozen=True, slots=True)
class SettledCall:
    """The result of a reserved model call, for its ledger row.

    `estimated`: the provider sent no usage, so the tokens are our own count.
    """

    call: Reserved
    state: ModelCallState
    reply: ModelReply | None = None
    cost: Cost = field(default_factory=lambda: Cost(None, None))
    error_class: str | None = None
    latency_ms: int | None = None
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class ToolIntent:
    """A tool call about to be made. Every attempt sends the same `idempotency_key`.

    With an `approval_hash`, the call waits until a person approves exactly what hashes to it.
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
    """A tool call of an earlier commit that starts now. `approval_hash` is set if it needed an approval."""

    tool_call_id: str
    approval_hash: str | None = None


@dataclass(frozen=True, slots=True)
class ToolSettled:
    """The outcome of a tool call, for its row."""

    tool_call_id: str
    outcome: ToolOutcome


@dataclass(frozen=True, slots=True)
class Reserve:
    """The intent of a model call: its ledger row is written before the request.

    `last_message_offset` is the offset of the last customer message known so far. `bound` is reserved in the budgets. `again`: the row
    exists already, and only the amount reserved for it changes.
    """

    call: Reserved
    provider: str
    model: str
    last_message_offset: int = -1
    bound: Bound | None = None
    again: bool = False


@dataclass(frozen=True, slots=True)
class Finish:
    """The turn ends. `status` is done, failed, dead or cancelled; the other two fields say why it is not done."""

    status: str
    error_class: str | None = None
    error_detail: str | None = None


@dataclass(frozen=True, slots=True)
class Park:
    """The turn waits for `wait_s` seconds and holds no worker. `refund`: this claim does not count as an attempt.

    `for_approval`: it waits until one of its tool calls is approved or denied, or the first approval expires.
    """

    wait_s: float
    refund: bool = False
    error_class: str | None = None
    error_detail: str | None = None
    for_approval: bool = False


Outcome = Finish | Park


@dataclass(frozen=True, slots=True)
class TurnCommit:
    """One transaction of a turn: all of it is written, or none."""

    events: tuple[Event, ...] = ()
    model_call: SettledCall | None = None
    tool_results: tuple[ToolSettled, ...] = ()
    tool_calls: tuple[ToolIntent, ...] = ()
    starts: tuple[ToolStart, ...] = ()
    reserve: Reserve | None = None
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class CommitResult:
    """The database's answer to a commit.

    `new_messages`: customer messages that arrived meanwhile and that the reserved call must read; only with a `reserve`.
    `read_through`: the offset of the last customer message that the reserved call reads. `cancel_reason`: why the turn must not go on
    (a `CancelReason`); nothing that the commit intended was started then. `budget_refusal`: which budget has no room for the reserved call.
    `outcome`: how the turn ended or parked. The database decides it: a turn that was to be done may have been cancelled or paused.
    """

    new_messages: tuple[Event, ...] = ()
    read_through: int | None = None
    cancel_reason: str | None = None
    budget_refusal: str | None = None
    outcome: Outcome | None = None
