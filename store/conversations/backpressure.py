"""Back-pressure: how much work is open and how long it waits, read by the API before it accepts more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text as sql

from store.database import Database

# How many times `Limits.behind_s` a turn counts as behind: one turn that no worker can run must not block all intake for long.
LONGEST = 10.0

BACKPRESSURE = "SELECT * FROM backpressure($1, $2, $3, $4)"
EFFECT = "SELECT o_effect FROM message_effect(:session, :key, :strategy)"


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on open work: turns of one workspace, turns of all workspaces, seconds that a turn may wait for a worker. 0: no limit."""

    workspace: int
    total: int
    behind_s: float

    def __bool__(self) -> bool:
        return bool(self.workspace or self.total or self.behind_s)


@dataclass(frozen=True, slots=True)
class Reading:
    """Counts of open work. Each count stops at its limit; without a limit nothing is counted."""

    by_workspace: Mapping[UUID, int]
    total: int
    behind_s: float


async def read(database: Database, limits: Limits, workspaces: Sequence[UUID]) -> Reading:
    """Count the open turns of each of `workspaces` and of all, and return how long the oldest turn has waited for a worker."""
    row = await database.call(
        BACKPRESSURE,
        list(workspaces),
        limits.workspace or None,
        limits.total or None,
        limits.behind_s * LONGEST or None,
    )
    return Reading(dict(zip(workspaces, row["o_open"] or (), strict=False)), row["o_total"] or 0, row["o_behind_s"] or 0.0)


async def opens_one_more(
    database: Database, workspace_id: UUID, session_id: UUID, *, message_key: str | None, strategy: str | None
) -> bool:
    """Return whether a message would leave one more turn open.

    accept_message decides by the same SQL function (store/sql/message_effect.sql), but under the session's lock. Here it is read
    without a lock, because a refusal must be cheap. A repeated message, one that joins or replaces a turn, one that is refused for
    another reason and one that a person will answer open no turn.
    """
    async with database.transaction(workspace_id) as db:
        effect = await db.scalar(sql(EFFECT), {"session": session_id, "key": message_key, "strategy": strategy})
    return bool(effect == "opens")
