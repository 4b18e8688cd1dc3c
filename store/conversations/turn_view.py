"""Turns as the API shows them: status, time of each stage, usage and cost. The text of messages is in the log only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.errors import NotFound, Rejected
from engine.sentences import sentence, with_sentences
from models import ApprovalRow, EventRow, ModelCallRow, ToolCallRow, TurnRow
from store.conversations import sessions
from store.pagination import Page

TOKENS = ("input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
TURN = (
    TurnRow.id,
    TurnRow.session_id,
    TurnRow.status,
    TurnRow.strategy,
    TurnRow.opened_at_offset,
    TurnRow.read_through_offset,
    TurnRow.attempts,
    TurnRow.redrives,
    TurnRow.agent_version,
    TurnRow.error_class,
    TurnRow.error_detail,
    TurnRow.opened_at,
    TurnRow.started_at,
    TurnRow.settled_at,
    TurnRow.not_before,
    TurnRow.cancel_requested_at,
    TurnRow.cancelled_by,
)
WHOLE = (TurnRow.agent_digest, TurnRow.endings)
MODEL_CALL = (
    ModelCallRow.step,
    ModelCallRow.attempt,
    ModelCallRow.provider,
    ModelCallRow.model,
    ModelCallRow.state,
    *(getattr(ModelCallRow, name) for name in TOKENS),
    ModelCallRow.cost_usd,
    ModelCallRow.price_source,
    ModelCallRow.estimated,
    ModelCallRow.ttft_ms,
    ModelCallRow.latency_ms,
    ModelCallRow.provider_request_id,
    ModelCallRow.error_class,
    ModelCallRow.created_at,
    ModelCallRow.settled_at,
)
TOOL_CALL = (
    ToolCallRow.tool_call_id,
    ToolCallRow.tool_name,
    ToolCallRow.step,
    ToolCallRow.position,
    ToolCallRow.state,
    ToolCallRow.attempts,
    ToolCallRow.latency_ms,
    ToolCallRow.error,
    ToolCallRow.tool_id,
    ToolCallRow.integration_id,
    ToolCallRow.created_at,
    ToolCallRow.settled_at,
)
APPROVAL = (
    ApprovalRow.id,
    ApprovalRow.tool_call_id,
    ApprovalRow.status,
    ApprovalRow.requested_at,
    ApprovalRow.expires_at,
    ApprovalRow.decided_by,
    ApprovalRow.decided_at,
)


async def turn(db: AsyncConnection, turn_id: UUID) -> dict[str, Any]:
    """Return the turn with its stages, usage, cost, model calls, tool calls and approvals. Raises NotFound."""
    found = (await db.execute(select(*TURN, *WHOLE).where(TurnRow.id == turn_id))).mappings().one_or_none()
    if found is None:
        raise NotFound("no such turn")
    query = select(*MODEL_CALL).where(ModelCallRow.turn_id == turn_id).order_by(ModelCallRow.step, ModelCallRow.attempt)
    model_calls = [dict(row) for row in (await db.execute(query)).mappings()]
    query = select(*TOOL_CALL).where(ToolCallRow.turn_id == turn_id).order_by(ToolCallRow.step, ToolCallRow.position)
    tool_calls = [{**row, "error": sentence(row["error"])} for row in (await db.execute(query)).mappings()]
    query = select(*APPROVAL).where(ApprovalRow.turn_id == turn_id).order_by(ApprovalRow.requested_at, ApprovalRow.id)
    costs = [call["cost_usd"] for call in model_calls if call["cost_usd"] is not None]
    return {
        **_summary(found),
        "endings": [{**ending, "detail": sentence(ending["detail"])} for ending in found["endings"]],
        "stages_ms": stages_ms(found, model_calls, tool_calls),
        "usage": {name: sum(call[name] for call in model_calls) for name in TOKENS},
        "cost_usd": sum(costs, Decimal(0)) if costs else None,
        "unpriced_calls": sum(call["state"] == "settled" and call["cost_usd"] is None for call in model_calls),
        "unknown_calls": sum(call["state"] == "unknown" for call in model_calls),
        "model_calls": model_calls,
        "tool_calls": tool_calls,
        "approvals": [dict(row) for row in (await db.execute(query)).mappings()],
    }


async def timeline(db: AsyncConnection, session_id: UUID, turn_id: UUID, *, contents: bool = False) -> list[dict[str, Any]]:
    """Return the turn's events in the order of the log: offset, time, kind, source, status and tool; with `contents`, their content too."""
    columns = [
        EventRow.offset,
        EventRow.created_at,
        EventRow.kind,
        EventRow.source,
        EventRow.content["status"].astext.label("status"),
        EventRow.content["tool_name"].astext.label("tool_name"),
        EventRow.content["by"].astext.label("by"),
        EventRow.fence,
    ]
    columns += [EventRow.content] if contents else []
    of_turn = select(*columns).where(EventRow.session_id == session_id, EventRow.turn_id == turn_id)
    rows = [dict(row) for row in (await db.execute(of_turn.order_by(EventRow.offset))).mappings()]
    return [{**row, "content": with_sentences(row["content"])} for row in rows] if contents else rows


async def page(db: AsyncConnection, session_id: UUID, *, limit: int = 20, after: str | None = None, total: bool = False) -> Page:
    """Return the session's turns, the newest first, without their calls.

    `after` is the `next_cursor` of the page before: the `opened_at_offset` of its last turn.

    Raises:
        NotFound: the workspace has no such session.
        Rejected: `after` is not a cursor of this list.
    """
    query = select(*TURN).where(TurnRow.session_id == session_id)
    if after is not None:
        if not (after.isascii() and after.isdigit() and len(after) <= 9):
            raise Rejected("after is not a cursor of this list; send the next_cursor of a page as it was.")
        query = query.where(TurnRow.opened_at_offset < int(after))
    found = (await db.execute(query.order_by(TurnRow.opened_at_offset.desc()).limit(limit + 1))).mappings().all()
    if not found and not await sessions.exists(db, session_id):
        raise NotFound("no such session")
    count = await db.scalar(select(func.count()).select_from(TurnRow).where(TurnRow.session_id == session_id)) if total else None
    items = [_summary(row) for row in found[:limit]]
    return Page(items, str(items[-1]["opened_at_offset"]) if len(found) > limit else None, count)


def _summary(row: Mapping[Any, Any]) -> dict[str, Any]:
    shown = dict(row)
    error_class, detail = shown.pop("error_class"), shown.pop("error_detail")
    error = None if error_class is None else {"class": error_class, "detail": sentence(detail)}
    return {**shown, "error": error, "task_id_prefix": f"turn:{row['id']}:"}


def stages_ms(
    found: Mapping[Any, Any], model_calls: Sequence[Mapping[str, Any]], tool_calls: Sequence[Mapping[str, Any]]
) -> dict[str, int | None]:
    """Return milliseconds by stage; None for a stage that the turn has not reached.

    The tool calls of a step run together, so a step counts as its slowest call. `commit` is the rest of the time since the first
    claim: the database, and waiting between attempts.
    """
    opened, started, settled = found["opened_at"], found["started_at"], found["settled_at"]
    if started is None:
        return {"queued": None, "model": None, "tool": None, "commit": None, "total": _between(opened, settled)}
    model = sum(call["latency_ms"] or 0 for call in model_calls)
    slowest: dict[int, int] = {}
    for call in tool_calls:
        slowest[call["step"]] = max(slowest.get(call["step"], 0), call["latency_ms"] or 0)
    tool = sum(slowest.values())
    worked = _between(started, settled)
    commit = None if worked is None else max(0, worked - model - tool)
    return {"queued": _between(opened, started), "model": model, "tool": tool, "commit": commit, "total": _between(opened, settled)}


def _between(start: datetime, end: datetime | None) -> int | None:
    return None if end is None else max(0, round((end - start).total_seconds() * 1000))
