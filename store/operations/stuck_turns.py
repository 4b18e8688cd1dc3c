"""Turns that need an operator: open turns that no worker has claimed, with the reason; turns that ended without a reply.

Read as turnline_maintenance: ids, states and times of all workspaces.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from models.turn import IN_FLIGHT, OPEN
from store.database import Database

# Only the first open turn of a session can be claimed; those behind it are counted with it. A turn is runnable if a worker could have
# claimed it for all of the $2 seconds.
UNCLAIMED = f"""
SELECT * FROM (
    SELECT t.id, t.workspace_id, t.session_id, t.status, t.attempts, t.opened_at, t.claimed_at, t.not_before, t.dispatched_at,
        t.dispatch_count, t.admission, t.error_class, t.cancel_requested_at, s.mode, s.quarantined_at, s.lease_until,
        coalesce(t.not_before > now(), false) AS early, greatest(t.opened_at, t.claimed_at) AS since,
        (SELECT count(*) FROM turns b WHERE b.session_id = t.session_id AND b.{OPEN}) - 1 AS behind,
        t.{IN_FLIGHT} AND s.mode = 'auto' AND s.quarantined_at IS NULL
            AND (t.not_before IS NULL OR t.not_before < now() - make_interval(secs => $2)) AS runnable
    FROM turns t JOIN sessions s ON s.id = t.session_id
    WHERE t.{OPEN}
        AND (s.lease_until IS NULL OR s.lease_until < now())
        AND greatest(t.opened_at, t.claimed_at) < now() - make_interval(secs => $2)
        AND NOT EXISTS (SELECT 1 FROM turns e WHERE e.session_id = t.session_id AND e.{OPEN} AND e.opened_at_offset < t.opened_at_offset)
) unclaimed
WHERE runnable OR NOT $3
ORDER BY since LIMIT $1
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


async def open_turns(maintenance: Database, limit: int, for_s: float, *, runnable: bool = False) -> list[dict[str, Any]]:
    """Return open turns that no worker has claimed for more than `for_s` seconds, each with its `why`; the longest waiting first.

    With `runnable`, only those that a worker could have claimed all that time: not paused, parked, quarantined or waiting for approval.
    Turns behind another turn of their session are not listed, but counted with that turn (`behind`).
    """
    rows = await maintenance.rows(UNCLAIMED, limit, for_s, runnable)
    return [{**{name: value for name, value in row.items() if name != "runnable"}, "why": why(row)} for row in rows]


async def ended(maintenance: Database, limit: int, within_s: float) -> list[dict[str, Any]]:
    """Return turns that died or failed within the last `within_s` seconds and were not redriven; the latest first.

    `not_redrivable` says why a turn cannot be redriven any more; null if it can.
    """
    return await maintenance.rows(ENDED, limit, within_s)


def why(row: Mapping[str, Any]) -> str:
    """Return why no worker runs an open turn, as a sentence without its full stop."""
    if row["cancel_requested_at"] is not None:
        return "its cancellation was requested, but its worker was lost before it noticed; the sweep ends it"
    if row["quarantined_at"] is not None:
        release = f"`turnline release {row['session_id']}`"
        return f"its session has been quarantined since {_at(row['quarantined_at'])}: look at its dead turns, then {release}"
    if row["mode"] == "manual":
        return "a person answers in its session (mode manual)"
    if row["mode"] == "paused":
        return "its session is paused"
    if row["status"] == "waiting":
        return "it waits for an approval" + (f" until {_at(row['not_before'])}" if row["not_before"] else "")
    if row["early"]:
        return f"not before {_at(row['not_before'])}" + (f", after {row['error_class']}" if row["error_class"] else "")
    if row["status"] == "running":
        return f"its worker was lost: the lease ran out at {_at(row['lease_until'])}{_dispatched(row)}"
    if row["admission"] == "pending" and row["dispatched_at"] is None:
        return "it is pending: its workspace is at its in-flight limit"
    if row["dispatched_at"] is None:
        return "it was never dispatched: is the maintenance worker running?"
    return f"no worker took it{_dispatched(row)}"


def _dispatched(row: Mapping[str, Any]) -> str:
    if row["dispatched_at"] is None:
        return "; not dispatched since"
    times = "" if row["dispatch_count"] < 2 else f" {row['dispatch_count']} times"
    return f"; dispatched{times}, last at {_at(row['dispatched_at'])}"


def _at(moment: datetime | None) -> str:
    return "?" if moment is None else f"{moment:%m-%d %H:%M:%S}Z"
