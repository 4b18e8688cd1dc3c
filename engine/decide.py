"""State and brief -> what to do next. Pure; every rule of a turn's course stands here."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from uuid import UUID

from engine.brief import Brief
from engine.change import Finish, ToolIntent
from engine.events import ToolCall
from engine.turn import TurnState


@dataclass(frozen=True, slots=True)
class CallModel:
    """Ask the model: step `step` of the turn."""

    step: int


@dataclass(frozen=True, slots=True)
class CallTools:
    """Make these tool calls, all at once. Those in `refused` are over the turn's limit and get an answer without being made."""

    calls: tuple[ToolCall, ...]
    refused: frozenset[str] = frozenset()


Decision = CallModel | CallTools | Finish


def decide(state: TurnState, brief: Brief) -> Decision:
    """What the turn does next."""
    if state.reply is not None:
        return Finish("done")
    pending = state.pending
    if pending:
        allowed = max(0, brief.limits.tool_calls - (state.tool_calls - len(pending)))
        return CallTools(pending, frozenset(call.tool_call_id for call in pending[allowed:]))
    if state.step >= brief.limits.model_calls:
        return Finish("failed", "BudgetSpent", f"no reply after {state.step} model calls, the limit of one turn")
    return CallModel(state.step)


def tool_intents(calls: tuple[ToolCall, ...], brief: Brief, step: int) -> tuple[ToolIntent, ...]:
    """The rows of `calls`, asked for by the model reply of step `step`."""
    return tuple(
        ToolIntent(
            tool_call_id=call.tool_call_id,
            step=step,
            position=position,
            tool_id=tool.id if (tool := brief.tool(call.tool_name)) else None,
            tool_name=call.tool_name,
            arguments=call.arguments,
            arguments_hash=arguments_hash(call),
            idempotency_key=idempotency_key(brief.workspace_id, brief.turn_id, step, position),
        )
        for position, call in enumerate(calls)
    )


def idempotency_key(workspace_id: UUID, turn_id: UUID, step: int, position: int) -> str:
    """What is sent as `Idempotency-Key` with every attempt of a tool call: workspace, turn, step and place in the step."""
    return f"{workspace_id}:{turn_id}:{step}.{position}"


def arguments_hash(call: ToolCall) -> str:
    """SHA-256 (hex) of a tool call's name and arguments, in a form that does not depend on the order of keys."""
    given = call.raw_arguments if call.arguments is None else json.dumps(call.arguments, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{call.tool_name}\0{given}".encode("utf-8", "surrogatepass")).hexdigest()
