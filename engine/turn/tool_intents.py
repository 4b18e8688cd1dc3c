"""The rows of tool calls before they are made: idempotency keys, and the hashes that approvals are bound to."""

from __future__ import annotations

import hashlib
import json
from typing import Any
from uuid import UUID

from engine.events import ToolCall
from engine.tools.json_schema import validate
from engine.turn.commit import ToolIntent
from engine.turn.context import ToolSpec, TurnContext


def tool_intents(
    calls: tuple[ToolCall, ...], context: TurnContext, step: int, over_limit: frozenset[str] = frozenset()
) -> tuple[ToolIntent, ...]:
    """Return the rows of `calls`, which the model reply of step `step` asked for.

    A call needs an approval only if it could be made: not if it is in `over_limit`, nor if its arguments do not fit the tool's schema.
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
            approval_hash=(
                approval_hash(context, call) if tool and call.tool_call_id not in over_limit and _needs_approval(tool, call) else None
            ),
        )
        for position, call in enumerate(calls)
    )


def _needs_approval(tool: ToolSpec, call: ToolCall) -> bool:
    return tool.approval and call.arguments is not None and not validate(tool.parameters, call.arguments)


def approval_hash(context: TurnContext, call: ToolCall) -> str:
    """Return what an approval of `call` is bound to; see `hash_to_approve`."""
    tool = context.tool(call.tool_name)
    return hash_to_approve(context.session_id, tool.id if tool else None, call.tool_call_id, call.tool_name, call.arguments)


def hash_to_approve(session_id: UUID, tool_id: UUID | None, tool_call_id: str, tool_name: str, arguments: dict[str, Any] | None) -> str:
    """Return the SHA-256 (hex) of a session, a tool, one call of it and its arguments: an approval is valid for exactly that.

    Numbers count by value: 2 and 2.0 are the same, and so are 1e16 and what the database stores for it.
    """
    canonical = json.dumps(_numbers_by_value(arguments), sort_keys=True, separators=(",", ":"))
    parts = f"{session_id}\0{tool_id}\0{tool_call_id}\0{tool_name}\0{canonical}"
    return hashlib.sha256(parts.encode("utf-8", "surrogatepass")).hexdigest()


def _numbers_by_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers_by_value(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers_by_value(item) for item in value]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value) + 0.0  # exact: larger integers than 2^53 are stored as text. Adding 0.0 turns -0.0 into 0.0.
    return value


def idempotency_key(workspace_id: UUID, turn_id: UUID, step: int, position: int) -> str:
    """Return the `Idempotency-Key` that every attempt of a tool call sends: workspace, turn, step and position within the step."""
    return f"{workspace_id}:{turn_id}:{step}.{position}"


def arguments_hash(call: ToolCall) -> str:
    """Return the SHA-256 (hex) of a tool call's name and arguments, independent of the order of keys."""
    canonical = call.raw_arguments if call.arguments is None else json.dumps(call.arguments, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{call.tool_name}\0{canonical}".encode("utf-8", "surrogatepass")).hexdigest()
