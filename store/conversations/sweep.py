"""The sweep: find turns that should be running and are not, whether a dispatch or a worker was lost or a wait is over."""

from __future__ import annotations

from uuid import UUID

from models.turn import IN_FLIGHT, OPEN
from store.database import Database

# Only the first open turn of a session can be claimed, so only that one is dispatched. A turn that was dispatched and not claimed is
# dispatched again after $1 seconds, then after twice that, at most six times that, so that a long queue does not fill with repeats.
# Of turns that are not admitted yet, each workspace gets as many as its in-flight limit ($3) allows, the oldest first; each workspace's
# first turn goes before any workspace's second. A turn that waits for an approval is due when that expires; a cancelled one is due at once.
_FOUND = f"""
WITH due AS (
    SELECT t.id, t.workspace_id, t.opened_at, t.admission = 'admitted' AND t.{IN_FLIGHT} AS admitted
    FROM turns t JOIN sessions s ON s.id = t.session_id
    WHERE t.{OPEN}
        AND (t.not_before <= now() OR t.not_before IS NULL AND t.status <> 'waiting')
        AND (s.mode = 'auto' AND s.quarantined_at IS NULL OR t.cancel_requested_at IS NOT NULL)
        AND (s.lease_until IS NULL OR s.lease_until < now())
        AND CASE WHEN t.dispatched_at IS NULL THEN coalesce(t.not_before, t.opened_at) < now() - interval '1 second'
                 ELSE t.dispatched_at < now() - make_interval(secs => $1 * least(2 ^ t.dispatch_count, 6)) END
        AND NOT EXISTS (SELECT 1 FROM turns e WHERE e.session_id = t.session_id AND e.{OPEN}
                        AND e.opened_at_offset < t.opened_at_offset)),
in_flight AS (
    SELECT workspace_id, count(*) AS n FROM turns WHERE admission = 'admitted' AND {IN_FLIGHT} GROUP BY 1),
queued AS (
    SELECT id, opened_at, row_number() OVER (PARTITION BY workspace_id ORDER BY opened_at) + coalesce(n, 0) AS nth
    FROM due LEFT JOIN in_flight USING (workspace_id) WHERE NOT admitted),
chosen AS (
    SELECT id, 0 AS nth, opened_at FROM due WHERE admitted
    UNION ALL
    SELECT id, nth, opened_at FROM queued WHERE nth <= $3
    ORDER BY nth, opened_at LIMIT $2)"""
DUE = f"""{_FOUND},
locked AS (
    SELECT t.id FROM turns t WHERE t.id IN (SELECT id FROM chosen) FOR UPDATE SKIP LOCKED)
UPDATE turns SET dispatched_at = now(), dispatch_count = dispatch_count + 1, admission = 'admitted' FROM locked WHERE turns.id = locked.id
RETURNING turns.id, turns.dispatch_count
"""


COUNT = f"{_FOUND} SELECT count(*) AS n FROM chosen"


async def due(maintenance: Database, *, stale_s: float, in_flight_limit: int = 200, limit: int = 1000) -> list[tuple[UUID, int]]:
    """Return turns to dispatch, as (id, how often it was dispatched with this), at most `limit`, and mark them as dispatched.

    `maintenance` acts as turnline_maintenance, which sees the states of all workspaces' turns and no message. A dispatch that was not
    claimed is stale after `stale_s` seconds. `in_flight_limit` is a workspace's in-flight limit.
    """
    return [(row["id"], row["dispatch_count"]) for row in await maintenance.rows(DUE, stale_s, limit, in_flight_limit)]


async def how_many_are_due(maintenance: Database, *, stale_s: float, in_flight_limit: int = 200, limit: int = 1000) -> int:
    """Return how many turns `due` would return. Nothing is marked."""
    return int((await maintenance.call(COUNT, stale_s, limit, in_flight_limit))["n"])
