"""What an operator must look at: open turns that nobody carries, and why; turns that ended without a reply. Ids and times only."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from store.database import Database

# Only the first open turn of a session can be carried; those behind it are counted with it.
OPEN = """
SELECT t.id, t.workspace_id, t.session_id, t.status, t.attempts, t.opened_at, t.claimed_at, t.not_before, t.dispatched_at, t.dispatch_count,
    t.admission,
    t.error_class, t.cancel_requested_at, s.mode, s.quarantined_at, s.lease_until, coalesce(t.not_before > now(), false) AS early,
    greatest(t.opened_at, t.claimed_at) AS since,
    (SELECT count(*) FROM turns b WHERE b.session_id = t.session_id AND b.status IN ('queued', 'running', 'waiting')) - 1 AS behind
FROM turns t JOIN sessions s ON s.id = t.session_id
WHERE t.status IN ('queued', 'running', 'waiting')
    AND (s.lease_until IS NULL OR s.lease_until < now())
    AND greatest(t.opened_at, t.claimed_at) < now() - make_interval(secs => $2)
    AND NOT EXISTS (SELECT 1 FROM turns e WHERE e.session_id = t.session_id AND e.status IN ('queued', 'running', 'waiting')
                    AND e.opened_at_offset < t.opened_at_offset)
ORDER BY greatest(t.opened_at, t.claimed_at) LIMIT $1
"""
ENDED = """
SELECT t.id, t.workspace_id, t.session_id, t.status, t.attempts, t.error_class, t.opened_at, t.settled_at, s.quarantined_at,
    CASE WHEN s.status <> 'active' THEN 'session ended'
         WHEN s.mode = 'manual' THEN 'a person answers'
         WHEN EXISTS (SELECT 1 FROM turns l WHERE l.session_id = t.session_id AND l.opened_at_offset > t.opened_at_offset
                      AND l.status IN ('running', 'waiting', 'done')) THEN 'answered since'
    END AS not_redrivable
FROM turns t JOIN sessions s ON s.id = t.session_id
WHERE t.status IN ('dead', 'failed') AND t.settled_at > now() - make_interval(secs => $2)
ORDER BY t.settled_at DESC LIMIT $1
"""


async def open_turns(maintenance: Database, limit: int, for_s: float) -> list[dict[str, Any]]:
    """Open turns that nobody carries and that were opened or last claimed more than `for_s` seconds ago, each with its `why`; the
    longest waiting first. Those behind another turn of their session are only counted (`behind`)."""
    rows = await maintenance.rows(OPEN, limit, for_s)
    return [{**row, "why": why(row)} for row in rows]


async def ended(maintenance: Database, limit: int, within_s: float) -> list[dict[str, Any]]:
    """Turns that died or failed within the last `within_s` seconds and were not redriven; the latest first.

    `not_redrivable` says why one cannot be redriven any more; null where it can.
    """
    return await maintenance.rows(ENDED, limit, within_s)


def why(row: Mapping[str, Any]) -> str:
    """Why nobody carries an open turn, in a sentence without its full stop."""
    if row["cancel_requested_at"] is not None:
        return "it was asked to stop, and its worker was lost before it heard; the sweep ends it"
    if row["quarantined_at"] is not None:
        lifted = f"`turnline release {row['session_id']}`"
        return f"its session is quarantined since {_at(row['quarantined_at'])}: look at its dead turns, then {lifted}"
    if row["mode"] == "manual":
        return "a person answers in its session (mode manual)"
    if row["mode"] == "paused":
        return "its session is paused"
    if row["status"] == "waiting":
        return "it waits for an approval" + (f" until {_at(row['not_before'])}" if row["not_before"] else "")
    if row["early"]:
        return f"not before {_at(row['not_before'])}" + (f", after {row['error_class']}" if row["error_class"] else "")
    if row["status"] == "running":
        return f"its worker was lost: the lease ran out at {_at(row['lease_until'])}" + _rung(row)
    if row["admission"] == "pending" and row["dispatched_at"] is None:
        return "it waits for room: its workspace has as many turns on their way as it may"
    if row["dispatched_at"] is None:
        return "it was never rung: does the maintenance worker run?"
    return f"no worker took it{_rung(row)}"


def _rung(row: Mapping[str, Any]) -> str:
    if row["dispatched_at"] is None:
        return "; not rung since"
    times = "" if row["dispatch_count"] < 2 else f" {row['rings']} times"
    return f"; rung{times}, last at {_at(row['dispatched_at'])}"


def _at(moment: datetime | None) -> str:
    return "?" if moment is None else f"{moment:%m-%d %H:%M:%S}Z"
