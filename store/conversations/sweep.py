"""Finding turns that nobody carries: never rung, rung in vain, left by a worker that died, or waiting for what has not come."""

from __future__ import annotations

from uuid import UUID

from store.database import Database

# Only the first open turn of a session can be claimed, so only that one is worth ringing. A turn that was rung and not claimed is
# rung again after $1 seconds, then after twice that, at most six times that: rings that still wait in a long queue are not multiplied.
# Of turns that were not granted a place yet, each workspace gets as many rung as its window ($3) has room for; the oldest first, and of
# all workspaces the first ones first. A turn that waits for an approval is due when that expires; one that was cancelled, always.
_FOUND = """
WITH due AS (
    SELECT t.id, t.workspace_id, t.opened_at, t.admission = 'admitted' AND t.status IN ('queued', 'running') AS granted
    FROM turns t JOIN sessions s ON s.id = t.session_id
    WHERE t.status IN ('queued', 'running', 'waiting')
        AND (t.not_before <= now() OR t.not_before IS NULL AND t.status <> 'waiting')
        AND (s.mode = 'auto' AND s.quarantined_at IS NULL OR t.cancel_requested_at IS NOT NULL)
        AND (s.lease_until IS NULL OR s.lease_until < now())
        AND CASE WHEN t.dispatched_at IS NULL THEN coalesce(t.not_before, t.opened_at) < now() - interval '1 second'
                 ELSE t.dispatched_at < now() - make_interval(secs => $1 * least(2 ^ t.dispatch_count, 6)) END
        AND NOT EXISTS (SELECT 1 FROM turns e WHERE e.session_id = t.session_id AND e.status IN ('queued', 'running', 'waiting')
                        AND e.opened_at_offset < t.opened_at_offset)),
taken AS (
    SELECT workspace_id, count(*) AS n FROM turns WHERE admission = 'admitted' AND status IN ('queued', 'running') GROUP BY 1),
queued AS (
    SELECT id, opened_at, row_number() OVER (PARTITION BY workspace_id ORDER BY opened_at) + coalesce(n, 0) AS nth
    FROM due LEFT JOIN taken USING (workspace_id) WHERE NOT granted),
chosen AS (
    SELECT id, 0 AS nth, opened_at FROM due WHERE granted
    UNION ALL
    SELECT id, nth, opened_at FROM queued WHERE nth <= $3
    ORDER BY nth, opened_at LIMIT $2)"""
DUE = f"""{_FOUND},
locked AS (
    SELECT t.id FROM turns t WHERE t.id IN (SELECT id FROM chosen) FOR UPDATE SKIP LOCKED)
UPDATE turns SET dispatched_at = now(), dispatch_count = dispatch_count + 1, admission = 'admitted' FROM locked WHERE turns.id = locked.id
RETURNING turns.id, turns.dispatch_count
"""


HOW_MANY = f"{_FOUND} SELECT count(*) AS n FROM chosen"


async def due(maintenance: Database, *, stale_s: float, window: int = 200, limit: int = 1000) -> list[tuple[UUID, int]]:
    """The turns that want ringing (id, which ring of it this is), at most `limit`; they are marked as rung.

    `maintenance` acts as turnline_maintenance, which sees where the work of every workspace stands and none of what was said.
    `window`: how many turns of one workspace may be rung or running at a time.
    """
    return [(row["id"], row["dispatch_count"]) for row in await maintenance.rows(DUE, stale_s, limit, window)]


async def how_many_are_due(maintenance: Database, *, stale_s: float, window: int = 200, limit: int = 1000) -> int:
    """How many turns `due` would return; nothing is marked."""
    return int((await maintenance.call(HOW_MANY, stale_s, limit, window))["n"])
