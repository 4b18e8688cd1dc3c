"""Deleting sessions with all their rows: those whose retention is over, and those of an erased customer.

It runs as turnline_maintenance, which sees ids and counts. See `store/sql`: mark_expired, delete_marked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from uuid import UUID

from models.turn import OPEN
from store.database import Database

ROWS = 100  # events of one batch: few enough that a turn waits only some milliseconds for one
MARKED = 100  # sessions marked at a time
REST = 4.0  # pause after a batch, as a multiple of its duration, so that turns have most of the database's time
KEPT_DAYS = 400  # of the rows in `deletions`

KINDS = ("sessions", "turns", "events", "model_calls", "tool_calls", "approvals")

_MARK = "SELECT mark_expired($1) AS n"
_DELETE = "SELECT * FROM delete_marked($1, $2)"
_DUE = f"""
SELECT count(*) AS sessions, coalesce(sum(event_count), 0) AS events FROM (
    SELECT s.event_count FROM agents a JOIN workspaces w ON w.id = a.workspace_id JOIN sessions s ON s.agent_id = a.id
    WHERE s.ended_at < now() - make_interval(days => least(a.data_retention_days, w.data_retention_days))
        AND s.last_activity_at < now() - make_interval(days => least(a.data_retention_days, w.data_retention_days))
        AND s.deleting_at IS NULL AND s.held_at IS NULL AND s.status <> 'active' AND s.counted
        AND (s.lease_until IS NULL OR s.lease_until < now())
        AND NOT EXISTS (SELECT 1 FROM turns t WHERE t.session_id = s.id AND t.{OPEN})
    UNION ALL SELECT event_count FROM sessions WHERE deleting_at IS NOT NULL
    LIMIT $1) due"""
_FORGET = """
WITH old AS (SELECT session_id FROM (SELECT session_id, begun_at FROM deletions ORDER BY begun_at LIMIT 5000) first
             WHERE begun_at < now() - make_interval(days => $1)),
gone AS (DELETE FROM deletions WHERE session_id IN (SELECT session_id FROM old) AND finished_at IS NOT NULL RETURNING 1)
SELECT count(*) AS n FROM gone"""


@dataclass(slots=True)
class Deleted:
    """The number of rows deleted, by kind (`KINDS`). `complete`: nothing was left because time ran out."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    complete: bool = True


async def due(maintenance: Database, *, at_most: int = 100_000) -> tuple[int, int]:
    """Return how many sessions a clean-up would delete now, and their events. It counts at most `at_most` sessions."""
    row = await maintenance.call(_DUE, at_most)
    return row["sessions"], int(row["events"])


async def clean_up(
    maintenance: Database,
    *,
    max_s: float = 300.0,
    rows: int = ROWS,
    rest: float = REST,
    on_batch: Callable[[dict[str, int]], None] = lambda counts: None,
) -> Deleted:
    """Delete every session whose retention is over, and what earlier runs left. `on_batch` is called with the counts of each batch.

    It ends after about `max_s` seconds, and the next run continues. After each batch it pauses for `rest` times the batch's duration.
    Runs that overlap delete different sessions.
    """
    began = time.monotonic()
    done = Deleted()

    def in_time() -> bool:
        return time.monotonic() - began < max_s

    while True:
        done.complete = await _delete(maintenance, done, None, rows, rest, on_batch, in_time)
        if not done.complete or not (await maintenance.call(_MARK, MARKED))["n"]:
            break
    while in_time() and (await maintenance.call(_FORGET, KEPT_DAYS))["n"]:
        pass
    return done


async def delete_marked(maintenance: Database, sessions: Collection[UUID], *, rest: float = REST) -> Deleted:
    """Delete those of these sessions that are marked. Another run may still be deleting some of them; see `left`."""
    done = Deleted()
    await _delete(maintenance, done, list(sessions), ROWS, rest, lambda counts: None, lambda: True)
    return done


async def left(maintenance: Database, sessions: Collection[UUID]) -> int:
    """Return how many of these sessions still have a row."""
    return int((await maintenance.call("SELECT count(*) AS n FROM sessions WHERE id = ANY ($1)", list(sessions)))["n"])


async def _delete(
    maintenance: Database,
    done: Deleted,
    only: list[UUID] | None,
    rows: int,
    rest: float,
    on_batch: Callable[[dict[str, int]], None],
    in_time: Callable[[], bool],
) -> bool:
    """Delete marked sessions in batches. Return true when none is left to take, false when the time is over."""
    while in_time():
        began = time.monotonic()
        row = await maintenance.call(_DELETE, rows, only)
        if not row["o_busy"]:
            return True
        batch = {kind: row[f"o_{kind}"] for kind in KINDS}
        for kind, count in batch.items():
            done.counts[kind] += count
        on_batch(batch)
        await asyncio.sleep(rest * (time.monotonic() - began))
    return False
