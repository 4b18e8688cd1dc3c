"""A turn as its workspace sees it: where it stands, how long each stage took, what it used and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.errors import NotFound
from models import ModelCallRow, ToolCallRow, TurnRow

_TIMES = ("opened_at", "started_at", "claimed_at", "settled_at", "not_before", "rung_at")
_TOKENS = ("input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
MODEL_CALL = (
    ModelCallRow.step,
    ModelCallRow.attempt,
    ModelCallRow.provider,
    ModelCallRow.model,
    ModelCallRow.state,
    *(getattr(ModelCallRow, name) for name in _TOKENS),
    ModelCallRow.cost_usd,
    ModelCallRow.price_source,
    ModelCallRow.ttft_ms,
    ModelCallRow.latency_ms,
    ModelCallRow.provider_request_id,
    ModelCallRow.error_class,
    ModelCallRow.created_at,
    ModelCallRow.settled_at,
)
TOOL_CALL = (
    ToolCallRow.tool_call_id,
    ToolCallRow.tool_name.label("name"),
    ToolCallRow.step,
    ToolCallRow.state,
    ToolCallRow.attempts,
    ToolCallRow.latency_ms,
    ToolCallRow.error,
    ToolCallRow.tool_id,
    ToolCallRow.integration_id,
    ToolCallRow.created_at,
    ToolCallRow.settled_at,
)


async def turn(db: AsyncConnection, turn_id: UUID) -> dict[str, Any]:
    """The turn with its model calls and tool calls, without what was said or asked. Raises NotFound."""
    found = (await db.execute(select(TurnRow.__table__).where(TurnRow.id == turn_id))).mappings().one_or_none()
    if found is None:
        raise NotFound("no such turn")
    model_calls = [
        dict(row)
        for row in (
            await db.execute(select(*MODEL_CALL).where(ModelCallRow.turn_id == turn_id).order_by(ModelCallRow.step, ModelCallRow.attempt))
        ).mappings()
    ]
    tool_calls = [
        dict(row)
        for row in (
            await db.execute(select(*TOOL_CALL).where(ToolCallRow.turn_id == turn_id).order_by(ToolCallRow.step, ToolCallRow.position))
        ).mappings()
    ]
    costs = [call["cost_usd"] for call in model_calls if call["cost_usd"] is not None]
    error_class, detail = found["error_class"], found["error_detail"]
    return {
        **{name: found[name] for name in ("id", "session_id", "status", "strategy", "opened_at_offset", "read_through_offset")},
        "attempts": found["attempts"],
        "agent_version": found["agent_version"],
        "error": None if error_class is None else {"class": error_class, "detail": detail},
        "timestamps": {name: found[name] for name in _TIMES},
        "stages_ms": stages_ms(found, model_calls, tool_calls),
        "usage": {name: sum(call[name] for call in model_calls) for name in _TOKENS},
        "cost_usd": sum(costs, Decimal(0)) if costs else None,
        "unpriced_calls": sum(call["state"] == "settled" and call["cost_usd"] is None for call in model_calls),
        "unknown_calls": sum(call["state"] == "unknown" for call in model_calls),
        "model_calls": model_calls,
        "tool_calls": tool_calls,
        "task_id_prefix": f"turn:{found['id']}:",
    }


def stages_ms(
    found: Mapping[Any, Any], model_calls: Sequence[Mapping[str, Any]], tool_calls: Sequence[Mapping[str, Any]]
) -> dict[str, int | None]:
    """Milliseconds by stage; null where the turn has not come that far.

    Tool calls of one step run together, so a step counts as its slowest. `commit` is what is left of the whole: the database, the
    claim, and waiting between attempts.
    """
    opened, started, settled = found["opened_at"], found["started_at"], found["settled_at"]
    queued, total = _between(opened, started), _between(opened, settled)
    model = sum(call["latency_ms"] or 0 for call in model_calls)
    slowest: dict[int, int] = {}
    for call in tool_calls:
        slowest[call["step"]] = max(slowest.get(call["step"], 0), call["latency_ms"] or 0)
    tool = sum(slowest.values())
    commit = None if total is None or queued is None else max(0, total - queued - model - tool)
    return {"queued": queued, "model": model, "tool": tool, "commit": commit, "total": total}


def _between(start: datetime | None, end: datetime | None) -> int | None:
    return None if start is None or end is None else max(0, round((end - start).total_seconds() * 1000))
