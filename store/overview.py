"""The truth about turns, for an operator: where they stand, what they cost, never what was said."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import text

from store import turn_view
from store.database import Database

_COLUMNS = """
SELECT t.id, t.workspace_id, t.session_id, t.status, t.attempts, t.rings, t.opened_at, t.claimed_at, t.rung_at, t.not_before,
    CASE WHEN s.lease_until > now() AND t.status = 'running' THEN s.lease_owner END AS carried_by
FROM turns t JOIN sessions s ON s.id = t.session_id
"""
LATEST = _COLUMNS + "ORDER BY t.id DESC LIMIT $1"
# Only the first open turn of a session can be carried, so those behind it are late, not stuck.
STUCK = (
    _COLUMNS
    + """
WHERE t.status IN ('queued', 'running') AND s.mode = 'auto'
    AND (t.not_before IS NULL OR t.not_before < now() - make_interval(secs => $2))
    AND (s.lease_until IS NULL OR s.lease_until < now())
    AND greatest(t.opened_at, t.claimed_at) < now() - make_interval(secs => $2)
    AND NOT EXISTS (SELECT 1 FROM turns e WHERE e.session_id = t.session_id AND e.status IN ('queued', 'running', 'waiting')
                    AND e.opened_at_offset < t.opened_at_offset)
ORDER BY t.opened_at LIMIT $1
"""
)

TURN = """
SELECT id, workspace_id, session_id, status, strategy, opened_at_offset, read_through_offset, attempts, rings, fence, opened_at, started_at,
    claimed_at, settled_at, not_before, rung_at, cancel_requested_at, error_class, error_detail
FROM turns WHERE id = :id
"""
# Of what a turn's view has, the columns a terminal has room for.
MODEL_CALL = ("step", "attempt", "provider", "model", "state", *turn_view.TOKENS, "cost_usd", "ttft_ms", "latency_ms", "error_class")
TOOL_CALL = ("step", "position", "tool_name", "state", "attempts", "latency_ms", "error")


async def latest(maintenance: Database, limit: int) -> list[dict[str, Any]]:
    """The newest turns of every workspace, the newest first."""
    return await maintenance.rows(LATEST, limit)


async def stuck(maintenance: Database, limit: int, for_s: float) -> list[dict[str, Any]]:
    """Turns that could be worked on, and for `for_s` seconds nobody has; the longest waiting first."""
    return await maintenance.rows(STUCK, limit, for_s)


async def one(app: Database, turn_id: UUID) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]] | None:
    """A turn's row with its stages and cost, its model calls and its tool calls, or None where there is no such turn."""
    workspace_id = (await app.call("SELECT workspace_of_turn($1) AS id", turn_id))["id"]
    if workspace_id is None:
        return None
    async with app.transaction(workspace_id) as db:
        row = (await db.execute(text(TURN), {"id": turn_id})).mappings().one()
        view = await turn_view.turn(db, turn_id)
    stages = {f"{stage}_ms": ms for stage, ms in view["stages_ms"].items()}
    models = [{name: call[name] for name in MODEL_CALL} for call in view["model_calls"]]
    tools = [{name: call[name] for name in TOOL_CALL} for call in view["tool_calls"]]
    return {**row, **stages, "cost_usd": view["cost_usd"]}, models, tools
