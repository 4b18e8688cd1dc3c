"""Erasing a customer: finding their sessions, marking them for deletion, and the receipt. It runs as turnline_maintenance.

A receipt names the customer by a digest only. It proves the erasure to anybody who knows the customer's id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from store.database import Database, dumps

_FIND = """SELECT id, workspace_id, event_count, held_at, deleting_at, counted FROM sessions
WHERE customer_id = $1 AND workspace_id = ANY ($2) ORDER BY id"""
_WORKSPACES = "SELECT id FROM workspaces WHERE $1::uuid IS NULL OR id = $1"
_UNFINISHED = (
    "SELECT workspace_id FROM erasures WHERE customer_sha256 = $1 AND finished_at IS NULL AND ($2::uuid IS NULL OR workspace_id = $2)"
)
_BEGIN = """INSERT INTO erasures (workspace_id, customer_sha256, asked_by) VALUES ($1, $2, $3)
ON CONFLICT (workspace_id, customer_sha256) WHERE finished_at IS NULL DO UPDATE SET asked_by = excluded.asked_by RETURNING id"""
_ADOPT = """WITH adopted AS (UPDATE deletions SET erasure_id = $2 WHERE session_id = ANY ($1) AND erasure_id IS NULL RETURNING 1)
SELECT count(*) AS n FROM adopted"""
_FINISH = "UPDATE erasures SET finished_at = clock_timestamp(), broker = $2::jsonb WHERE id = $1 RETURNING id"
_RECEIPT = """
SELECT e.id AS erasure_id, e.workspace_id, encode(e.customer_sha256, 'hex') AS customer_sha256, e.asked_by, e.started_at, e.finished_at,
    count(d.session_id)::integer AS sessions, coalesce(sum(d.events), 0)::integer AS events, coalesce(sum(d.turns), 0)::integer AS turns,
    coalesce(sum(d.model_calls), 0)::integer AS model_calls, coalesce(sum(d.tool_calls), 0)::integer AS tool_calls,
    coalesce(sum(d.approvals), 0)::integer AS approvals, e.broker
FROM erasures e LEFT JOIN deletions d ON d.erasure_id = e.id WHERE e.id = $1 GROUP BY e.id, e.workspace_id"""


@dataclass(frozen=True, slots=True)
class Kept:
    """A session of the customer. `going`: it is being deleted already. `counted`: analytics have counted it."""

    id: UUID
    workspace_id: UUID
    events: int
    held_at: datetime | None
    going: bool
    counted: bool


def digest(customer_id: str) -> bytes:
    """Return the digest that a receipt has in place of the customer's id."""
    return hashlib.sha256(customer_id.encode("utf-8", "surrogatepass")).digest()


async def find(maintenance: Database, customer_id: str, workspace_id: UUID | None) -> list[Kept]:
    """Return the sessions of a customer, in one workspace or (None) in all."""
    workspaces = [row["id"] for row in await maintenance.rows(_WORKSPACES, workspace_id)]
    return [
        Kept(row["id"], row["workspace_id"], row["event_count"], row["held_at"], row["deleting_at"] is not None, row["counted"])
        for row in await maintenance.rows(_FIND, customer_id, workspaces)
    ]


async def unfinished(maintenance: Database, customer_id: str, workspace_id: UUID | None) -> list[UUID]:
    """Return the workspaces in which the erasure of this customer was begun and not finished."""
    return [row["workspace_id"] for row in await maintenance.rows(_UNFINISHED, digest(customer_id), workspace_id)]


async def begin(maintenance: Database, workspace_id: UUID, customer_id: str, *, by: str) -> UUID:
    """Begin the erasure of a customer, or continue an unfinished one, and return its id."""
    erasure_id: UUID = (await maintenance.call(_BEGIN, workspace_id, digest(customer_id), by))["id"]
    return erasure_id


async def mark(maintenance: Database, sessions: Collection[UUID], erasure_id: UUID) -> None:
    """Mark for deletion those of the sessions that have ended and have no open turn. Sessions marked before become part of this erasure."""
    await maintenance.call("SELECT mark_erased($1, $2) AS n", list(sessions), erasure_id)
    await maintenance.call(_ADOPT, list(sessions), erasure_id)


async def sessions_of(maintenance: Database, erasure_id: UUID) -> list[UUID]:
    """Return the sessions that this erasure deletes or has deleted."""
    return [row["session_id"] for row in await maintenance.rows("SELECT session_id FROM deletions WHERE erasure_id = $1", erasure_id)]


async def finish(maintenance: Database, erasure_id: UUID, broker: Mapping[str, int]) -> dict[str, Any]:
    """Record that everything is deleted, with the number of messages removed from each queue, and return the receipt."""
    await maintenance.call(_FINISH, erasure_id, dumps(dict(broker)))
    return await maintenance.call(_RECEIPT, erasure_id)
