"""Tool calls that a claim finds without a result: how far a former claim came with them, and what a person has decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from json import dumps
from typing import Any

from engine.enums import ApprovalStatus, ToolCallState, ToolStatus
from engine.events import ToolCall, ToolOutcome
from engine.turn.commit import ToolStart
from engine.turn.context import TurnContext
from engine.turn.decide import approval_hash


@dataclass(frozen=True, slots=True)
class Approval:
    """What a person has decided about one tool call, bound to `arguments_hash`. `edited_arguments` take the place of the model's."""

    decision: ApprovalStatus
    arguments_hash: str
    reason: str | None = None
    edited_arguments: dict[str, Any] | None = None
    used: bool = False


@dataclass(frozen=True, slots=True)
class Pending:
    """A tool call that has a row and no result."""

    idempotency_key: str
    state: ToolCallState
    approval: Approval | None = None


@dataclass(frozen=True, slots=True)
class Sorted:
    """The pending calls of a turn: to be begun (by a commit first), to be made now, to be answered without being made, to wait for."""

    starts: tuple[ToolStart, ...] = ()
    ready: tuple[ToolCall, ...] = ()
    answers: Mapping[str, ToolOutcome] = field(default_factory=dict)
    waiting: tuple[ToolCall, ...] = ()


def sort(calls: tuple[ToolCall, ...], rows: Mapping[str, Pending], context: TurnContext) -> Sorted:
    """Say of each pending call what is to be done with it next. A call without a row is ready."""
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
        elif approval.decision is not ApprovalStatus.APPROVED:
            answers[call.tool_call_id] = _denied(_why(approval))
        elif (hashed := approval_hash(context, approved)) != approval.arguments_hash:
            answers[call.tool_call_id] = _changed(begun=state is ToolCallState.RUNNING)
        elif state is ToolCallState.RUNNING:
            ready.append(approved)
        elif approval.used:
            answers[call.tool_call_id] = _denied(_why(approval))
        else:
            starts.append(ToolStart(call.tool_call_id, hashed))
    return Sorted(tuple(starts), tuple(ready), answers, tuple(waiting))


def as_approved(call: ToolCall, row: Pending | None) -> ToolCall:
    """The call with the arguments that a person has put in place of the model's, where they did."""
    edited = row.approval.edited_arguments if row and row.approval else None
    if edited is None:
        return call
    return replace(call, arguments=edited, raw_arguments=dumps(edited, ensure_ascii=False, separators=(",", ":")))


def _why(approval: Approval) -> str:
    match approval.decision:
        case ApprovalStatus.DENIED:
            return f"A person decided against it{f': {approval.reason}' if approval.reason else '.'}"
        case ApprovalStatus.EXPIRED:
            return "Nobody approved it in time, so it was not made."
        case _:
            return "Its approval was used or withdrawn before, so it was not made."


def _changed(*, begun: bool) -> ToolOutcome:
    if begun:
        return ToolOutcome(ToolStatus.UNKNOWN, error="It was started, and what was approved is not what would be run again.", requests=0)
    return _denied("What was approved is not what would be run, so it was not run.")


def _denied(sentence: str) -> ToolOutcome:
    return ToolOutcome(ToolStatus.DENIED, error=sentence, requests=0)
