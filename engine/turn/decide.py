"""The next step of a turn. Pure: every rule about the order of a turn's steps is here; what follows a failed call is in `retry.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from engine.enums import CancelReason
from engine.events import ToolCall, ToolOutcome
from engine.turn.commit import Finish, Park, Reserved, ToolStart
from engine.turn.context import TurnContext
from engine.turn.pending_calls import sort_pending
from engine.turn.progress import Progress
from engine.turn.state import TurnState


@dataclass(frozen=True, slots=True)
class ReserveCall:
    """Write the ledger row of the next model call, or (`again`) change what budgets reserve for it."""

    call: Reserved
    again: bool = False


@dataclass(frozen=True, slots=True)
class CallModel:
    """Send the reserved model call."""

    call: Reserved


@dataclass(frozen=True, slots=True)
class BeginTools:
    """Mark these tool calls as running; the next step makes them."""

    starts: tuple[ToolStart, ...]


@dataclass(frozen=True, slots=True)
class CallTools:
    """Make the `ready` tool calls concurrently. `answers` are results of calls that are not made (for example, denied ones).

    `calls` are all pending calls in the order asked; those in `over_limit` get an answer without being made.
    """

    calls: tuple[ToolCall, ...]
    ready: tuple[ToolCall, ...]
    answers: Mapping[str, ToolOutcome] = field(default_factory=dict)
    over_limit: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Cancel:
    """End the turn because it was told to stop."""

    reason: CancelReason


Decision = ReserveCall | CallModel | BeginTools | CallTools | Cancel | Finish | Park


def decide(progress: Progress, context: TurnContext, *, cancel_reason: CancelReason | None, out_of_time: bool) -> Decision:
    """Return the next step. `out_of_time`: workers have spent the turn's wall-clock limit on it."""
    if progress.budget_refusal is not None:
        return Finish("failed", "BudgetSpent", progress.budget_refusal)
    if cancel_reason is CancelReason.PAUSED:
        return Park(0.0, refund=True)
    if cancel_reason is not None:
        return Cancel(cancel_reason)
    match next_step(progress.state, context, out_of_time=out_of_time):
        case AskModel(step):
            if progress.reserved is None:
                return ReserveCall(Reserved(step, 0))
            if not progress.bound_is_current:
                return ReserveCall(progress.reserved, again=True)
            return CallModel(progress.reserved)
        case UseTools(calls, over_limit):
            pending = sort_pending(calls, progress.rows, context)
            if pending.starts:
                return BeginTools(pending.starts)
            if not pending.ready and not pending.answers:
                return Park(0.0, refund=True, for_approval=True)
            return CallTools(calls, pending.ready, pending.answers, over_limit)
        case Finish() as finish:
            return finish


@dataclass(frozen=True, slots=True)
class AskModel:
    """The model is next: step `step` of the turn."""

    step: int


@dataclass(frozen=True, slots=True)
class UseTools:
    """Tool calls without a result are next, in the order asked; those in `over_limit` exceed the turn's limit."""

    calls: tuple[ToolCall, ...]
    over_limit: frozenset[str] = frozenset()


def next_step(state: TurnState, context: TurnContext, *, out_of_time: bool) -> AskModel | UseTools | Finish:
    """Return what follows `state`: finish with a reply or at a limit, answer pending tool calls, or ask the model."""
    if state.reply is not None:
        return Finish("done")
    if state.pending:
        over = state.calls[len(state.calls) - state.tool_calls :][context.limits.tool_calls :]
        return UseTools(state.pending, frozenset(call.tool_call_id for call in over))
    replies, limits = state.step - state.base_step, context.limits
    if replies >= limits.model_calls:
        return Finish("failed", "BudgetSpent", f"no reply after {replies} model calls, the limit of one turn")
    if replies + state.tool_calls >= limits.steps:
        return Finish("failed", "BudgetSpent", f"no reply after {limits.steps} steps (model calls and tool calls), the limit of one turn")
    if out_of_time:
        return Finish("failed", "BudgetSpent", f"no reply after {limits.wall_clock_s:.0f} s of work, the limit of one turn")
    return AskModel(state.step)
