"""What agents came to: from the rollups, and from what has not been added to them yet, in one snapshot. So it equals a recount."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from engine import histogram
from engine.enums import Grain
from engine.errors import NotFound, Rejected
from engine.histogram import Histogram
from store.analytics.rollup_sql import AGENT, BOTH_TIMES, MODEL, TOOL, Sums, local_date, within
from store.database import Database

LONGEST_DAYS = 366
LONGEST_DAYS_BY_HOUR = 31
NO_TOOL = UUID(int=0)

_SNAPSHOT = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"
_AGENTS = "SELECT coalesce(array_agg(id), '{}') FROM agents WHERE workspace_id = :workspace"
_ZONE = """SELECT w.timezone, ARRAY(SELECT r.agent_id FROM agent_rollups r WHERE r.workspace_id = w.id AND r.agent_id = ANY (:agents)
    AND r.grain = 'total' AND (r.timezone <> w.timezone OR r.days_cut_to IS NOT NULL)) AS not_cut
FROM workspaces w WHERE w.id = :workspace"""
_TODAY = "SELECT (now() AT TIME ZONE timezone)::date FROM workspaces WHERE id = :workspace"
_TOOLS = """SELECT * FROM (SELECT t.id, t.name,
    EXISTS (SELECT 1 FROM agent_tools a WHERE a.tool_id = t.id AND a.agent_id = ANY (:agents)) AS assigned FROM tools t) named
WHERE assigned OR id = ANY (:used)"""
_TOOL_COUNTS = "SELECT agent_id, count(*) AS tools FROM agent_tools WHERE agent_id = ANY (:agents) GROUP BY agent_id"

Row = dict[str, Any]
Step = Literal["day", "hour"]


@dataclass(frozen=True, slots=True)
class Days:
    """From one day to another, both among them.

    Raises:
        Rejected: they are in the wrong order, or too many.
    """

    first: date
    last: date

    def __post_init__(self) -> None:
        if self.last < self.first:
            raise Rejected("`to` is a day before `from`.")
        if (self.last - self.first).days >= LONGEST_DAYS:
            raise Rejected(f"From `from` to `to` there may be {LONGEST_DAYS} days.")


@asynccontextmanager
async def snapshot(database: Database, workspace_id: UUID) -> AsyncIterator[AsyncConnection]:
    """A transaction in which every question is answered as of one moment. It reads only."""
    async with database.transaction() as db:
        await db.execute(text(_SNAPSHOT))
        await db.execute(text("SELECT set_config('app.workspace_id', :id, true)"), {"id": str(workspace_id)})
        yield db


async def days(db: AsyncConnection, workspace_id: UUID, first: date | None, last: date | None) -> Days:
    """The days asked for: up to today in the workspace's time zone unless said otherwise, and thirty of them.

    Raises:
        Rejected: they are in the wrong order, or too many.
    """
    if last is None:
        last = await db.scalar(text(_TODAY), {"workspace": workspace_id})
        if last is None:
            raise NotFound("no such workspace")
    return Days(last - min(timedelta(days=29), last - date.min) if first is None else first, last)


async def in_all(db: AsyncConnection, workspace_id: UUID, agent_id: UUID | None, days: Days | None = None) -> dict[str, Any]:
    """What the agent came to, or without one all agents of the workspace, in all or between two days.

    `agent`, `models`, `tools` are sums; `timezone` is that of the days. What agents came to that are deleted now is among them.
    """
    zone, grains = await _grains(db, workspace_id, agent_id, Grain.DAY if days else Grain.TOTAL)
    asked = (workspace_id, zone, days, grains)
    (agent,) = await _sums(db, AGENT, *asked, place="0") or [_nothing(AGENT)]
    models = await _sums(db, MODEL, *asked, place="0")
    used = {row["tool_id"]: row for row in await _sums(db, TOOL, *asked, place="0")}
    named = (await db.execute(text(_TOOLS), {"agents": _all(grains), "used": list(used)})).all()
    names = {row.id: row.name for row in named}
    tools = [row | {"tool_name": names.get(tool_id)} for tool_id, row in used.items() if row["calls"] or tool_id in names]
    tools += [_nothing(TOOL) | {"tool_id": row.id, "tool_name": row.name} for row in named if row.assigned and row.id not in used]
    tools.sort(key=lambda row: (-uses(row), row["tool_name"] or ""))
    return {"timezone": zone, "agent": agent, "models": sorted(models, key=lambda row: -row["calls"]), "tools": tools}


async def step_by_step(
    db: AsyncConnection, workspace_id: UUID, agent_id: UUID | None, days: Days, by: Step = "day"
) -> tuple[str, list[tuple[Row, Row]]]:
    """Day by day, or hour by hour, what the agent and all its model calls came to, each with `place`; and the workspace's time zone.

    Without an agent it is what all agents of the workspace came to.
    `place` is the day, or the moment at which the hour begins. Those in which nothing happened are left out.

    Raises:
        Rejected: hours of too many days.
    """
    if by == "hour" and (days.last - days.first).days >= LONGEST_DAYS_BY_HOUR:
        raise Rejected(f"From `from` to `to` there may be {LONGEST_DAYS_BY_HOUR} days by hour.")
    zone, grains = await _grains(db, workspace_id, agent_id, Grain.QUARTER if by == "hour" else Grain.DAY)
    asked = (workspace_id, zone, days, grains)
    agents = {row["place"]: row for row in await _sums(db, AGENT, *asked, place=_PLACES[by])}
    models: dict[Any, Row] = {}
    for row in await _sums(db, MODEL, *asked, place=_PLACES[by]):
        models[row["place"]] = _added(MODEL, models.get(row["place"], _nothing(MODEL)), row)
    told = [
        (agents.get(place, _nothing(AGENT)) | {"place": place}, models.get(place, _nothing(MODEL))) for place in sorted(agents | models)
    ]
    return zone, [pair for pair in told if any(pair[0][name] for name in AGENT.numbers) or pair[1]["calls"]]


async def stats(db: AsyncConnection, workspace_id: UUID, agent_ids: Sequence[UUID]) -> dict[UUID, Row]:
    """What each of these agents came to in all, with `tool_count`, by agent."""
    rows = await _sums(db, AGENT, workspace_id, "UTC", None, {Grain.TOTAL: list(agent_ids)}, place="agent_id")
    told = {row["place"]: row for row in rows}
    counts = {row.agent_id: row.tools for row in await db.execute(text(_TOOL_COUNTS), {"agents": list(agent_ids)})}
    return {one: told.get(one, _nothing(AGENT)) | {"tool_count": counts.get(one, 0)} for one in agent_ids}


def uses(row: Mapping[str, Any]) -> int:
    """How often a tool was used: calls that came to an end, or whose end nobody heard; not those that a person denied."""
    return int(row["calls"] - row["denied_calls"])


_PLACES: dict[Step, str] = {"day": local_date('f."when"', ":zone"), "hour": "date_trunc('hour', f.\"when\", :zone)"}


async def _grains(db: AsyncConnection, workspace_id: UUID, agent_id: UUID | None, grain: Grain) -> tuple[str, dict[str, list[UUID]]]:
    """The workspace's time zone, and which rollups answer for which agents: a day's do not until they are all cut in it."""
    asked: list[UUID] = [agent_id] if agent_id else await db.scalar(text(_AGENTS), {"workspace": workspace_id}) or []
    row = (await db.execute(text(_ZONE), {"workspace": workspace_id, "agents": asked})).one_or_none()
    if row is None:
        raise NotFound("no such workspace")
    if grain is not Grain.DAY or not row.not_cut:
        return row.timezone, {grain: asked}
    return row.timezone, {Grain.DAY: [one for one in asked if one not in set(row.not_cut)], Grain.QUARTER: row.not_cut}


def _all(grains: Mapping[str, list[UUID]]) -> list[UUID]:
    return [agent for agents in grains.values() for agent in agents]


async def _sums(
    db: AsyncConnection, sums: Sums, workspace_id: UUID, zone: str, days: Days | None, grains: Mapping[str, list[UUID]], *, place: str
) -> list[Row]:
    """What facts and rollups come to together, by `place` (SQL over `f`) and what the rollup is by."""
    by = "".join(f", f.{column}" for column in sums.by)
    between = within('f."when"', ":zone") if days else "true"
    rollups = " UNION ALL ".join(
        f"""SELECT r.*, r.start AS "when" FROM {sums.table} r
          WHERE r.workspace_id = :workspace AND r.agent_id = ANY (:{grain}) AND r.grain = '{grain}'"""
        for grain in grains
    )
    parameters: dict[str, Any] = {"workspace": workspace_id, "zone": zone, "agents": _all(grains), **grains}
    if days:
        parameters |= {"first": days.first, "last": days.last}
    statement = f"""
    SELECT {place} AS place{by}, {sums.summed}
    FROM ({rollups}) f
    WHERE {between} GROUP BY {place}{by}
    UNION ALL
    SELECT {place} AS place{by}, {sums.selected}
    FROM (SELECT src.*, twice."when", twice.cohort FROM usage_facts src {BOTH_TIMES}
          AND src.workspace_id = :workspace AND src.agent_id = ANY (:agents)) f
    WHERE {sums.kinds} AND {between} GROUP BY {place}{by}"""
    if place == "0":  # the whole of it, which has no place to group by
        statement = statement.replace("GROUP BY 0, ", "GROUP BY ").replace("GROUP BY 0", "HAVING count(*) > 0")
    told: dict[tuple[Any, ...], Row] = {}
    for row in (await db.execute(text(statement), parameters)).mappings().all():
        key = (row["place"], *(row[column] for column in sums.by))
        told[key] = _added(sums, told.get(key, _nothing(sums)), dict(row)) | {"place": row["place"], **{one: row[one] for one in sums.by}}
    return list(told.values())


def _nothing(sums: Sums) -> Row:
    return dict.fromkeys(sums.numbers, 0) | {name: {} for name in sums.histograms} | dict.fromkeys(sums.latest)


def _added(sums: Sums, one: Mapping[str, Any], other: Mapping[str, Any]) -> Row:
    row: Row = {name: one[name] + _number(other[name]) for name in sums.numbers}
    row |= {name: histogram.merge(one[name], _histogram(other[name])) for name in sums.histograms}
    moments: dict[str, list[datetime]] = {name: [at for at in (one[name], other[name]) if at is not None] for name in sums.latest}
    return row | {name: max(found, default=None) for name, found in moments.items()}


def _number(value: Any) -> int | Decimal:
    """Sums of whole numbers come as `numeric` as well; dollars alone have places behind the point."""
    if value is None:
        return 0
    return int(value) if not isinstance(value, Decimal) or value.as_tuple().exponent == 0 else value


def _histogram(value: Mapping[Any, Any] | None) -> Histogram:
    return {int(bucket): int(count) for bucket, count in (value or {}).items()}
