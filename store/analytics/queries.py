"""Analytics of agents: rollups and the facts that are not rolled up yet, read in one snapshot, so that the sums equal a recount."""

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
    """A range of days, both ends included.

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
    """Open a read-only transaction in which all queries see one moment."""
    async with database.transaction() as db:
        await db.execute(text(_SNAPSHOT))
        await db.execute(text("SELECT set_config('app.workspace_id', :id, true)"), {"id": str(workspace_id)})
        yield db


async def days(db: AsyncConnection, workspace_id: UUID, first: date | None, last: date | None) -> Days:
    """Return the days from `first` to `last`: by default, the thirty days up to today in the workspace's time zone.

    Raises:
        Rejected: they are in the wrong order, or too many.
    """
    if last is None:
        last = await db.scalar(text(_TODAY), {"workspace": workspace_id})
        if last is None:
            raise NotFound("no such workspace")
    return Days(last - min(timedelta(days=29), last - date.min) if first is None else first, last)


async def in_all(db: AsyncConnection, workspace_id: UUID, agent_id: UUID | None, days: Days | None = None) -> dict[str, Any]:
    """Return the sums of the agent, or of all agents of the workspace if it is None, in total or of a range of days.

    `agent`, `models`, `tools` are sums; `timezone` is that of the days. Deleted agents are included.
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
    """Return the workspace's time zone, and by day or hour the sums of the agent and of all its model calls, each with `place`.

    Without an agent they are the sums of all agents of the workspace. `place` is the day, or the time at which the hour begins. Days and
    hours without activity are left out.

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
    """Return the total sums of each of these agents, with `tool_count`, by agent."""
    rows = await _sums(db, AGENT, workspace_id, "UTC", None, {Grain.TOTAL: list(agent_ids)}, place="agent_id")
    told = {row["place"]: row for row in rows}
    counts = {row.agent_id: row.tools for row in await db.execute(text(_TOOL_COUNTS), {"agents": list(agent_ids)})}
    return {one: told.get(one, _nothing(AGENT)) | {"tool_count": counts.get(one, 0)} for one in agent_ids}


def uses(row: Mapping[str, Any]) -> int:
    """Return how often a tool was used: calls that ended or whose result was lost, without those that a person denied."""
    return int(row["calls"] - row["denied_calls"])


_PLACES: dict[Step, str] = {"day": local_date('f."when"', ":zone"), "hour": "date_trunc('hour', f.\"when\", :zone)"}


async def _grains(db: AsyncConnection, workspace_id: UUID, agent_id: UUID | None, grain: Grain) -> tuple[str, dict[str, list[UUID]]]:
    """Return the workspace's time zone, and the agents by the rollups to read: daily ones only when all days are of that zone."""
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
    """Return the sums of facts and rollups together, by `place` (SQL over `f`) and by the rollup's own columns."""
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
    if place == "0":  # the total, which is not grouped
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
    """Return a whole number as int: Postgres returns sums of integers as `numeric`, too. Only dollars have decimals."""
    if value is None:
        return 0
    return int(value) if not isinstance(value, Decimal) or value.as_tuple().exponent == 0 else value


def _histogram(value: Mapping[Any, Any] | None) -> Histogram:
    return {int(bucket): int(count) for bucket, count in (value or {}).items()}
