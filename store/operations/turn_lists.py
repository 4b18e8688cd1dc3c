"""Turns for an operator: the newest of all workspaces, and everything about one. The text of messages only on request."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import text

from store.conversations import turn_view
from store.database import Database
from store.tenancy import workspace_of_turn

LATEST = """
SELECT t.id, t.workspace_id, t.session_id, t.status, t.attempts, t.dispatch_count, t.opened_at, t.claimed_at, t.dispatched_at, t.not_before,
    CASE WHEN s.lease_until > now() AND t.status = 'running' THEN s.lease_owner END AS claimed_by
FROM turns t JOIN sessions s ON s.id = t.session_id
ORDER BY t.id DESC LIMIT $1
"""
# Columns that the API does not show.
OPERATORS = """
SELECT t.workspace_id, t.dispatch_count, t.dispatched_at, t.admission, t.fence, t.claimed_at, t.running_s,
    t.cancel_reason, s.mode, s.quarantined_at
FROM turns t JOIN sessions s ON s.id = t.session_id WHERE t.id = :id
"""


async def latest(maintenance: Database, limit: int) -> list[dict[str, Any]]:
    """Return the newest turns of all workspaces, the newest first."""
    return await maintenance.rows(LATEST, limit)


async def story(app: Database, turn_id: UUID, *, contents: bool = False) -> dict[str, Any] | None:
    """Return `turn_view.turn`, the columns for operators and the timeline of a turn, or None if there is no such turn.

    Only with `contents` does the timeline hold the contents of events.
    """
    workspace_id = await workspace_of_turn(app, turn_id)
    if workspace_id is None:
        return None
    async with app.transaction(workspace_id) as db:
        row = (await db.execute(text(OPERATORS), {"id": turn_id})).mappings().one()
        view = await turn_view.turn(db, turn_id)
        events = await turn_view.timeline(db, view["session_id"], turn_id, contents=contents)
    return {**view, **row, "timeline": events}
