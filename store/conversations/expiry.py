"""Abandoning idle sessions and expiring overdue approvals, as turnline_maintenance.

See `store/sql`: abandon_sessions, expire_approvals.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import UUID

from models.turn import OPEN
from store.database import Database

PAGE = 1000  # active sessions read by one statement
BATCH = 50  # sessions changed in one transaction

# Ids are ordered by time: sessions that are too young to be idle come last and are not read.
_IDLE = f"""
SELECT s.id, s.last_activity_at < now() - make_interval(secs => $2) AND s.quarantined_at IS NULL AND s.deleting_at IS NULL
    AND (s.lease_until IS NULL OR s.lease_until < now())
    AND NOT EXISTS (SELECT 1 FROM turns t WHERE t.session_id = s.id AND t.{OPEN}) AS idle
FROM sessions s WHERE s.status = 'active' AND s.id > $1 AND s.created_at < now() - make_interval(secs => $2)
ORDER BY s.id LIMIT $3"""
_ABANDON = "SELECT abandon_sessions($1, $2) AS n"
_LATE = """SELECT DISTINCT p.session_id FROM approvals p JOIN sessions s ON s.id = p.session_id
WHERE p.status = 'pending' AND p.expires_at < now() - make_interval(secs => $1) AND p.session_id > $2
    AND s.deleting_at IS NULL AND (s.lease_until IS NULL OR s.lease_until < now())
ORDER BY p.session_id LIMIT $3"""
_EXPIRE = "SELECT expire_approvals($1) AS n"

GRACE_S = 5.0  # for the turn itself: the sweep dispatches it when its approval expires
FIRST = UUID(int=0)


async def idle(maintenance: Database, idle_s: float) -> AsyncIterator[tuple[int, list[UUID]]]:
    """Yield, for each page of active sessions, how many it has and the ids of those that have been idle for `idle_s` seconds."""
    after = FIRST
    while page := await maintenance.rows(_IDLE, after, idle_s, PAGE):
        yield len(page), [row["id"] for row in page if row["idle"]]
        after = page[-1]["id"]


async def abandon(maintenance: Database, sessions: list[UUID], idle_s: float) -> int:
    """Abandon those of the sessions that are still idle for `idle_s` seconds, and return how many."""
    count = 0
    for first in range(0, len(sessions), BATCH):
        count += int((await maintenance.call(_ABANDON, sessions[first : first + BATCH], idle_s))["n"])
    return count


async def with_late_approvals(maintenance: Database, grace_s: float = GRACE_S) -> AsyncIterator[list[UUID]]:
    """Yield pages of sessions with approvals that are overdue for `grace_s` seconds."""
    after = FIRST
    while page := [row["session_id"] for row in await maintenance.rows(_LATE, grace_s, after, BATCH)]:
        yield page
        after = page[-1]


async def expire(maintenance: Database, sessions: list[UUID]) -> int:
    """Expire the overdue approvals of these sessions, and return how many."""
    return int((await maintenance.call(_EXPIRE, sessions))["n"])
