"""Which integrations are to be asked whether they are there, and what is known of each.

The rows decide who asks whom when: an integration is taken for asking by moving its `next_health_check` on, so that any number of
schedulers and workers ask it once; one that was taken by a process that died is due again a minute later.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.enums import HealthStatus
from engine.errors import NotFound
from engine.tools.health import Health, Thresholds
from engine.turn.context import IntegrationSpec
from models.tool import ToolHealthChangeRow, ToolRow
from store.database import Database

TAKEN_FOR_S = 60.0
SOONER = 10  # what is not healthy is asked again in a tenth of the interval, and so found to be back soon
KEPT_DAYS = 90

_TAKE = f"""
WITH due AS (
    SELECT id FROM tool_integrations
    WHERE enabled AND (error_count > 0) = $2 AND (next_health_check IS NULL OR next_health_check <= coalesce($3, now()))
    ORDER BY next_health_check NULLS FIRST LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED)
UPDATE tool_integrations i SET next_health_check = now() + interval '{TAKEN_FOR_S:g} seconds' FROM due WHERE i.id = due.id
RETURNING i.id, i.workspace_id"""
_DUE = (
    "SELECT count(*) AS n, now() AS at FROM tool_integrations WHERE enabled AND (next_health_check IS NULL OR next_health_check <= now())"
)
_FORGET = f"DELETE FROM tool_health_changes WHERE created_at < now() - interval '{KEPT_DAYS} days' RETURNING id"
_BY_STATUS = "SELECT health_status, count(*) AS n FROM tool_integrations WHERE enabled GROUP BY 1"
_ILL = """SELECT id, tool_id, workspace_id, health_status, error_count, last_error, last_health_check FROM tool_integrations
WHERE enabled AND health_status IN ('degraded', 'unhealthy') ORDER BY health_status DESC, last_health_check LIMIT $1"""
_CHANGES = """SELECT id, workspace_id, tool_id, integration_id, from_status, to_status, error, created_at FROM tool_health_changes
ORDER BY id DESC LIMIT $1"""
_SPEC = "SELECT id, integration_type, configuration, secrets FROM tool_integrations WHERE id = :id AND enabled"
_HELD = """SELECT tool_id, health_status, error_count, answers_in_row,
    error_count = 0 AND last_health_check > now() - make_interval(secs => :asked_for_s) AS answered_meanwhile
FROM tool_integrations WHERE id = :id FOR NO KEY UPDATE"""
# Sooner than the interval, for the schedule may come late; and what was made in one moment is not asked in one moment for ever.
_RECORD = """UPDATE tool_integrations SET health_status = :status, error_count = :failures, answers_in_row = :answers,
    last_error = coalesce(:error, CASE WHEN :status = 'healthy' THEN NULL ELSE last_error END), last_health_check = now(),
    next_health_check = now() + make_interval(secs => :every_s * (0.7 + random() / 5))
WHERE id = :id"""
_CHANGED = """INSERT INTO tool_health_changes (workspace_id, tool_id, integration_id, from_status, to_status, error)
VALUES (:workspace_id, :tool_id, :id, :from_status, :to_status, :error)"""


@dataclass(frozen=True, slots=True)
class Observation:
    """What was heard of an integration: an answer (`error` is None), or why there was none, in a sentence without secrets.

    `asked_for_s`: how long a probe took to find out; it does not count as failed where a call was answered meanwhile. None: it was a call.
    """

    workspace_id: UUID
    integration_id: UUID
    error: str | None = None
    asked_for_s: float | None = None

    @property
    def by_call(self) -> bool:
        """A call was answered, or not; nobody asked for the sake of asking."""
        return self.asked_for_s is None


@dataclass(frozen=True, slots=True)
class Changed:
    """A status that is another than before."""

    tool_id: UUID
    before: HealthStatus
    now: HealthStatus


async def take(maintenance: Database, limit: int, *, failed: bool, due_at: datetime | None = None) -> list[tuple[UUID, UUID]]:
    """Integrations to be asked now, at most `limit`, as (workspace, integration); they are this caller's for a minute.

    `failed`: those that failed when they were heard of last; else the others. `due_at`: only those that were due by then.
    """
    return [(row["workspace_id"], row["id"]) for row in await maintenance.rows(_TAKE, limit, failed, due_at)]


async def how_many_are_due(maintenance: Database) -> tuple[int, datetime]:
    """How many integrations are to be asked now, and the database's now."""
    row = await maintenance.call(_DUE)
    return int(row["n"]), row["at"]


async def forget(maintenance: Database) -> int:
    """Forget changes of long ago; how many."""
    return len(await maintenance.rows(_FORGET))


async def by_status(maintenance: Database) -> dict[str, int]:
    """How many enabled integrations there are of each health status."""
    return {row["health_status"]: row["n"] for row in await maintenance.rows(_BY_STATUS)}


async def ill(maintenance: Database, limit: int) -> list[dict[str, Any]]:
    """Integrations that are not healthy, the worst first."""
    return await maintenance.rows(_ILL, limit)


async def changes(maintenance: Database, limit: int) -> list[dict[str, Any]]:
    """The latest changes of health, the newest first."""
    return await maintenance.rows(_CHANGES, limit)


async def changes_of_tool(db: AsyncConnection, tool_id: UUID, limit: int) -> list[dict[str, Any]]:
    """The latest changes of health of a tool's integrations, the newest first. Raises NotFound where there is no such tool."""
    if await db.scalar(select(ToolRow.id).where(ToolRow.id == tool_id)) is None:
        raise NotFound("no such tool")
    row = ToolHealthChangeRow
    columns = (row.id, row.integration_id, row.from_status, row.to_status, row.error, row.created_at)
    found = await db.execute(select(*columns).where(row.tool_id == tool_id).order_by(row.id.desc()).limit(limit))
    return [dict(one) for one in found.mappings()]


async def spec(database: Database, workspace_id: UUID, integration_id: UUID) -> tuple[IntegrationSpec, dict[str, str]] | None:
    """What there is to ask, and its sealed secrets; None where it is gone or was switched off."""
    async with database.transaction(workspace_id) as db:
        row = (await db.execute(text(_SPEC), {"id": integration_id})).mappings().one_or_none()
    return None if row is None else (IntegrationSpec(row["id"], row["integration_type"], row["configuration"]), row["secrets"])


async def record(database: Database, heard: Observation, thresholds: Thresholds, *, every_s: float) -> Changed | None:
    """Note what was heard of an integration, and the change where its status is another now; None where it is as before, or gone.

    A change stands in `tool_health_changes`, written in the same commit. `every_s`: how often a healthy one is asked.
    """
    async with database.transaction(heard.workspace_id) as db:
        asked = {"id": heard.integration_id, "asked_for_s": heard.asked_for_s or 0.0}
        row = (await db.execute(text(_HELD), asked)).mappings().one_or_none()
        if row is None or (heard.error is not None and not heard.by_call and row["answered_meanwhile"]):
            return None
        before = Health(HealthStatus(row["health_status"]), row["error_count"], row["answers_in_row"])
        now = before.after(heard.error is None, thresholds)
        values: dict[str, Any] = {"id": heard.integration_id, "status": now.status, "failures": now.failures, "answers": now.answers}
        # What is used and answers is known to be there, whatever probes have said; what is unhealthy is not used.
        in_use = heard.by_call and heard.error is None and now.status is not HealthStatus.UNHEALTHY
        waits = every_s if in_use or now == Health(HealthStatus.HEALTHY) else every_s / SOONER
        await db.execute(text(_RECORD), values | {"error": heard.error, "every_s": waits})
        if now.status is before.status:
            return None
        change = {"workspace_id": heard.workspace_id, "tool_id": row["tool_id"], "id": heard.integration_id, "error": heard.error}
        await db.execute(text(_CHANGED), change | {"from_status": before.status, "to_status": now.status})
    return Changed(row["tool_id"], before.status, now.status)
