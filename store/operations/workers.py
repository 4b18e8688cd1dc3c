"""Progress of worker processes: written by each worker's watchdog, read by operators."""

from __future__ import annotations

from typing import Any

from store.database import Database

FORGOTTEN_AFTER_DAYS = 7

_SEEN = """
INSERT INTO workers (name, pid, started_at, seen_at, progress_at, running)
VALUES ($1, $2, now() - make_interval(secs => $3), now(), now() - make_interval(secs => $4), $5)
ON CONFLICT (name) DO UPDATE SET pid = excluded.pid, started_at = excluded.started_at, seen_at = excluded.seen_at,
    progress_at = excluded.progress_at, running = excluded.running
RETURNING name"""
_STALLED = "UPDATE workers SET stalls = stalls + 1, stalled_at = now() WHERE name = $1 RETURNING name"
_FORGET = "DELETE FROM workers WHERE seen_at < now() - make_interval(days => $1) RETURNING name"
ALL = "SELECT name, pid, started_at, seen_at, progress_at, running, stalls, stalled_at FROM workers ORDER BY name"


async def seen(maintenance: Database, name: str, pid: int, *, age_s: float, idle_s: float, running: int) -> None:
    """Record that the worker `name` has run for `age_s` seconds and made progress `idle_s` seconds ago."""
    await maintenance.rows(_SEEN, name, pid, age_s, idle_s, running)


async def stalled(maintenance: Database, name: str) -> None:
    """Record that the worker `name` is ended because it made no progress, and delete workers that were not seen for a week."""
    await maintenance.rows(_STALLED, name)
    await maintenance.rows(_FORGET, FORGOTTEN_AFTER_DAYS)


async def everyone(maintenance: Database) -> list[dict[str, Any]]:
    """Return the rows of all workers seen in the last week, ordered by name."""
    return await maintenance.rows(ALL)
