"""How much is open, and how long it waits: what the front door asks before it takes more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text as sql

from store.database import Database

# One turn that nobody can carry must not close the door for everybody for long.
LONGEST = 10.0

PRESSURE = "SELECT * FROM backpressure($1, $2, $3, $4)"

# As accept_message decides it (store/sql/accept_message.sql), read without a lock: to refuse must be cheap.
# A message that interrupts a turn takes its place.
OPENS_ONE_MORE = """
SELECT s.status = 'active' AND s.mode <> 'manual' AND a.status = 'active' AND a.deleted_at IS NULL
    AND NOT EXISTS (SELECT 1 FROM events e WHERE e.session_id = s.id AND e.message_key = :key)
    AND CASE coalesce(:strategy, a.strategy) WHEN 'enqueue' THEN true
        WHEN 'coalesce' THEN last.strategy IS NULL OR last.strategy = 'enqueue' OR last.cancel_requested_at IS NOT NULL
        ELSE last.strategy IS NULL END
FROM sessions s JOIN agents a ON a.id = s.agent_id LEFT JOIN LATERAL (
    SELECT strategy, cancel_requested_at FROM turns t WHERE t.session_id = s.id AND t.status IN ('queued', 'running', 'waiting')
    ORDER BY t.opened_at_offset DESC LIMIT 1) last ON true
WHERE s.id = :session
"""


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be open: turns of one workspace, turns of all, seconds that a turn may wait for a worker. 0: no limit."""

    workspace: int
    total: int
    behind_s: float

    def __bool__(self) -> bool:
        return bool(self.workspace or self.total or self.behind_s)


@dataclass(frozen=True, slots=True)
class Reading:
    """What was open. Counts end at their limits; what has no limit is not counted."""

    by_workspace: Mapping[UUID, int]
    total: int
    behind_s: float


async def read(database: Database, limits: Limits, workspaces: Sequence[UUID]) -> Reading:
    """Count what is open in each of `workspaces` and in all of them, and how long the oldest turn has waited for a worker."""
    row = await database.call(
        PRESSURE,
        list(workspaces),
        limits.workspace or None,
        limits.total or None,
        limits.behind_s * LONGEST or None,
    )
    return Reading(dict(zip(workspaces, row["o_open"] or (), strict=False)), row["o_total"] or 0, row["o_behind_s"] or 0.0)


async def opens_one_more(
    database: Database, workspace_id: UUID, session_id: UUID, *, message_key: str | None, strategy: str | None
) -> bool:
    """Whether a message would leave one more turn open: not one that is repeated, joins a turn, is refused anyway or is for a person."""
    async with database.transaction(workspace_id) as db:
        found = await db.scalar(sql(OPENS_ONE_MORE), {"session": session_id, "key": message_key, "strategy": strategy})
    return bool(found)
