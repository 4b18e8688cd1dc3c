"""State and brief -> what to do next. Pure; every rule of a turn's course stands here."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from engine.events import ToolCall
from engine.tools.json_schema import validate
from engine.turn.commit import Finish, ToolIntent
from engine.turn.context import ToolSpec, TurnContext
from engine.turn.state import TurnState


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


def decide(state: TurnState, context: TurnContext) -> Decision:
    """What the turn does next."""
    if state.reply is not None:
        return Finish("done")
    pending = state.pending
    if pending:
        over = state.calls[len(state.calls) - state.tool_calls :][context.limits.tool_calls :]
        return CallTools(pending, frozenset(call.tool_call_id for call in over))
    replies, limits = state.step - state.base_step, context.limits
    if replies >= limits.model_calls:
        return Finish("failed", "BudgetSpent", f"no reply after {replies} model calls, the limit of one turn")
    if replies + state.tool_calls >= limits.steps:
        return Finish("failed", "BudgetSpent", f"no reply after {limits.steps} steps (model calls and tool calls), the limit of one turn")
    return CallModel(state.step)


def tool_intents(
    calls: tuple[ToolCall, ...], context: TurnContext, step: int, refused: frozenset[str] = frozenset()
) -> tuple[ToolIntent, ...]:
    """The rows of `calls`, asked for by the model reply of step `step`.

    A person is asked to approve a call only where it could be carried out: not one in `refused`, nor one whose arguments do not fit.
    """
    return tuple(
        ToolIntent(
            tool_call_id=call.tool_call_id,
            step=step,
            position=position,
            tool_id=tool.id if (tool := context.tool(call.tool_name)) else None,
            tool_name=call.tool_name,
            arguments=call.arguments,
            arguments_hash=arguments_hash(call),
            idempotency_key=idempotency_key(context.workspace_id, context.turn_id, step, position),
            effect=str(tool.effect) if tool else None,
            approval_hash=approval_hash(context, call) if tool and call.tool_call_id not in refused and _asks(tool, call) else None,
        )
        for position, call in enumerate(calls)
    )


def _asks(tool: ToolSpec, call: ToolCall) -> bool:
    return tool.approval and call.arguments is not None and not validate(tool.parameters, call.arguments)


def approval_hash(context: TurnContext, call: ToolCall) -> str:
    """What an approval of `call` is bound to; see `hash_to_approve`."""
    tool = context.tool(call.tool_name)
    return hash_to_approve(context.session_id, tool.id if tool else None, call.tool_call_id, call.tool_name, call.arguments)


def hash_to_approve(session_id: UUID, tool_id: UUID | None, tool_call_id: str, tool_name: str, arguments: dict[str, Any] | None) -> str:
    """SHA-256 (hex) of a session, a tool, one call of it and the arguments: an approval is good for exactly that.

    Numbers count by their value: 2 and 2.0 are one, and so are 1e16 and what the database makes of it.
    """
    given = json.dumps(_valued(arguments), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{session_id}\0{tool_id}\0{tool_call_id}\0{tool_name}\0{given}".encode("utf-8", "surrogatepass")).hexdigest()


def _valued(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _valued(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_valued(item) for item in value]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value) + 0.0  # integers beyond 2^53 are kept as text, so none is changed; no number has a signed zero
    return value


def idempotency_key(workspace_id: UUID, turn_id: UUID, step: int, position: int) -> str:
    """What is sent as `Idempotency-Key` with every attempt of a tool call: workspace, turn, step and place in the step."""
    return f"{workspace_id}:{turn_id}:{step}.{position}"


def arguments_hash(call: ToolCall) -> str:
    """SHA-256 (hex) of a tool call's name and arguments, in a form that does not depend on the order of keys."""
    given = call.raw_arguments if call.arguments is None else json.dumps(call.arguments, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{call.tool_name}\0{given}".encode("utf-8", "surrogatepass")).hexdigest()
