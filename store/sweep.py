"""Finding turns that nobody carries: never rung, rung in vain, or left by a worker that died."""

from __future__ import annotations

from uuid import UUID

from store.database import Database

# Only the first open turn of a session can be claimed, so only that one is worth ringing. A turn that was rung and not claimed is
# rung again after $1 seconds, then after twice that, at most six times that: rings that still wait in a long queue are not multiplied.
DUE = """
WITH due AS (
    SELECT t.id
    FROM turns t JOIN sessions s ON s.id = t.session_id
    WHERE t.status IN ('queued', 'running')
        AND (t.not_before IS NULL OR t.not_before <= now())
        AND s.mode = 'auto'
        AND (s.lease_until IS NULL OR s.lease_until < now())
        AND CASE WHEN t.rung_at IS NULL THEN coalesce(t.not_before, t.opened_at) < now() - interval '1 second'
                 ELSE t.rung_at < now() - make_interval(secs => $1 * least(2 ^ t.rings, 6)) END
        AND NOT EXISTS (SELECT 1 FROM turns e WHERE e.session_id = t.session_id AND e.status IN ('queued', 'running', 'waiting')
                        AND e.opened_at_offset < t.opened_at_offset)
    ORDER BY t.opened_at
    LIMIT $2
    FOR UPDATE OF t SKIP LOCKED)
UPDATE turns SET rung_at = now(), rings = rings + 1 FROM due WHERE turns.id = due.id
RETURNING turns.id, turns.rings
"""


async def due(maintenance: Database, *, stale_s: float, limit: int = 1000) -> list[tuple[UUID, int]]:
    """The turns that want ringing (id, which ring of it this is), at most `limit`; they are marked as rung.

    `maintenance` acts as turnline_maintenance, which sees where the work of every workspace stands and none of what was said.
    """
    return [(row["id"], row["rings"]) for row in await maintenance.rows(DUE, stale_s, limit)]
