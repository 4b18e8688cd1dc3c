"""The truth about turns, for an operator: where they stand, what they cost, never what was said."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import text

from store.conversations import turn_view
from store.database import Database
from store.tenancy import workspace_of_turn

_COLUMNS = """
SELECT t.id, t.workspace_id, t.session_id, t.status, t.attempts, t.dispatch_count, t.opened_at, t.claimed_at, t.dispatched_at, t.not_before,
    CASE WHEN s.lease_until > now() AND t.status = 'running' THEN s.lease_owner END AS claimed_by
FROM turns t JOIN sessions s ON s.id = t.session_id
"""
LATEST = _COLUMNS + "ORDER BY t.id DESC LIMIT $1"
# Only the first open turn of a session can be carried, so those behind it are late, not stuck.
STUCK = (
    _COLUMNS
    + """
WHERE t.status IN ('queued', 'running') AND s.mode = 'auto' AND s.quarantined_at IS NULL
    AND (t.not_before IS NULL OR t.not_before < now() - make_interval(secs => $2))
    AND (s.lease_until IS NULL OR s.lease_until < now())
    AND greatest(t.opened_at, t.claimed_at) < now() - make_interval(secs => $2)
    AND NOT EXISTS (SELECT 1 FROM turns e WHERE e.session_id = t.session_id AND e.status IN ('queued', 'running', 'waiting')
                    AND e.opened_at_offset < t.opened_at_offset)
ORDER BY t.opened_at LIMIT $1
"""
)

# Of a turn's row, what its workspace's programs have no use for.
OPERATORS = """
SELECT t.workspace_id, t.dispatch_count, t.dispatched_at, t.admission, t.fence, t.claimed_at, t.running_s,
    t.cancel_reason, s.mode, s.quarantined_at
FROM turns t JOIN sessions s ON s.id = t.session_id WHERE t.id = :id
"""


async def latest(maintenance: Database, limit: int) -> list[dict[str, Any]]:
    """The newest turns of every workspace, the newest first."""
    return await maintenance.rows(LATEST, limit)


async def stuck(maintenance: Database, limit: int, for_s: float) -> list[dict[str, Any]]:
    """Turns that could be worked on, and for `for_s` seconds nobody has; the longest waiting first."""
    return await maintenance.rows(STUCK, limit, for_s)


async def story(app: Database, turn_id: UUID, *, contents: bool = False) -> dict[str, Any] | None:
    """All there is to know of a turn: `turn_view.turn`, what only operators need, and its timeline; None where there is no such turn.

    What was said is among it only with `contents`.
    """
    workspace_id = await workspace_of_turn(app, turn_id)
    if workspace_id is None:
        return None
    async with app.transaction(workspace_id) as db:
        row = (await db.execute(text(OPERATORS), {"id": turn_id})).mappings().one()
        view = await turn_view.turn(db, turn_id)
        events = await turn_view.timeline(db, view["session_id"], turn_id, contents=contents)
    return {**view, **row, "timeline": events}
