"""Tool calls without a result: how far an earlier claim got with each, and what a person decided about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from json import dumps
from typing import Any

from engine.enums import ApprovalStatus, ToolCallState, ToolStatus
from engine.events import ToolCall, ToolOutcome
from engine.turn.commit import ToolStart
from engine.turn.context import TurnContext
from engine.turn.tool_intents import approval_hash


@dataclass(frozen=True, slots=True)
class Approval:
    """A person's decision about one tool call. It is valid for the call that `arguments_hash` was made of, and for one use.

    `edited_arguments` replace the model's.
    """

    decision: ApprovalStatus
    arguments_hash: str
    reason: str | None = None
    edited_arguments: dict[str, Any] | None = None
    used: bool = False


@dataclass(frozen=True, slots=True)
class Pending:
    """The row of a tool call without a result. `state` is requested, awaiting_approval or running."""

    idempotency_key: str
    state: ToolCallState
    approval: Approval | None = None


@dataclass(frozen=True, slots=True)
class SortedCalls:
    """The pending calls of a turn by what they need next.

    `starts`: to be marked as running by a commit. `ready`: to be made now. `answers`: results of calls that are not made. `waiting`: those
    that a person must decide about.
    """

    starts: tuple[ToolStart, ...] = ()
    ready: tuple[ToolCall, ...] = ()
    answers: Mapping[str, ToolOutcome] = field(default_factory=dict)
    waiting: tuple[ToolCall, ...] = ()


def sort_pending(calls: tuple[ToolCall, ...], rows: Mapping[str, Pending], context: TurnContext) -> SortedCalls:
    """Sort `calls` by what they need next. A call without a row is ready."""
    starts: list[ToolStart] = []
    ready: list[ToolCall] = []
    waiting: list[ToolCall] = []
    answers: dict[str, ToolOutcome] = {}
    for call in calls:
        row = rows.get(call.tool_call_id)
        state = row.state if row else ToolCallState.RUNNING
        approval = row.approval if row else None
        approved = as_approved(call, row)
        if approval is None or (state is ToolCallState.AWAITING_APPROVAL and approval.decision is ApprovalStatus.PENDING):
            match state:
                case ToolCallState.RUNNING:
                    ready.append(call)
                case ToolCallState.REQUESTED:
                    starts.append(ToolStart(call.tool_call_id))
                case ToolCallState.AWAITING_APPROVAL:
                    waiting.append(call)
                case _:
                    raise AssertionError(f"a tool call in state {state} has a result")
        elif approval.decision is not ApprovalStatus.APPROVED:
            answers[call.tool_call_id] = _denied(_reason(approval))
        elif (hashed := approval_hash(context, approved)) != approval.arguments_hash:
            answers[call.tool_call_id] = _differs_from_approval(begun=state is ToolCallState.RUNNING)
        elif state is ToolCallState.RUNNING:
            ready.append(approved)
        elif approval.used:
            answers[call.tool_call_id] = _denied(_reason(approval))
        else:
            starts.append(ToolStart(call.tool_call_id, hashed))
    return SortedCalls(tuple(starts), tuple(ready), answers, tuple(waiting))


def as_approved(call: ToolCall, row: Pending | None) -> ToolCall:
    """Return `call` with the arguments that a person put in place of the model's, if any."""
    edited = row.approval.edited_arguments if row and row.approval else None
    if edited is None:
        return call
    return replace(call, arguments=edited, raw_arguments=dumps(edited, ensure_ascii=False, separators=(",", ":")))


def _reason(approval: Approval) -> str:
    match approval.decision:
        case ApprovalStatus.DENIED:
            return f"A person denied it{f': {approval.reason}' if approval.reason else '.'}"
        case ApprovalStatus.EXPIRED:
            return "Nobody approved it in time, so it was not made."
        case _:
            return "Its approval was already used or withdrawn, so it was not made."


def _differs_from_approval(*, begun: bool) -> ToolOutcome:
    if begun:
        error = "It was started, and the call that would be repeated differs from the approved one."
        return ToolOutcome(ToolStatus.UNKNOWN, error=error, requests=0)
    return _denied("The call differs from the approved one, so it was not made.")


def _denied(sentence: str) -> ToolOutcome:
    return ToolOutcome(ToolStatus.DENIED, error=sentence, requests=0)
