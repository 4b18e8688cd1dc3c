"""What an agent came to: from the rollups, and from what has not been added to them yet, in one snapshot. So it equals a recount."""

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
from engine.errors import NotFound, Rejected
from engine.histogram import Histogram
from store.database import Database
from store.rollup_sums import AGENT, BOTH_TIMES, MODEL, TOOL, Sums, local_date

LONGEST_DAYS = 366
LONGEST_DAYS_BY_HOUR = 31
NO_TOOL = UUID(int=0)

_SNAPSHOT = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"
_ZONE = """SELECT w.timezone, bool_and(r.timezone = w.timezone) AS cut FROM workspaces w
LEFT JOIN agent_rollups r ON r.workspace_id = w.id AND r.grain = 'total' AND r.agent_id = :agent
WHERE w.id = :workspace GROUP BY w.timezone"""
_TODAY = "SELECT (now() AT TIME ZONE timezone)::date FROM workspaces WHERE id = :workspace"
_TOOLS = """SELECT t.id, t.name, a.tool_id IS NOT NULL AS assigned FROM tools t
LEFT JOIN agent_tools a ON a.tool_id = t.id AND a.agent_id = :agent
WHERE a.tool_id IS NOT NULL OR t.id = ANY (:used)"""
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


async def of_agent(db: AsyncConnection, workspace_id: UUID, agent_id: UUID, days: Days | None = None) -> dict[str, Any]:
    """What the agent came to, in all or between two days: `sessions`, `models`, `tools` as sums, and the `timezone` of the days."""
    zone, grain = await _zone(db, workspace_id, agent_id, days)
    asked = (workspace_id, [agent_id], zone, days, grain)
    (agent,) = await _sums(db, AGENT, *asked, place="0") or [_nothing(AGENT)]
    models = await _sums(db, MODEL, *asked, place="0")
    used = {row["tool_id"]: row for row in await _sums(db, TOOL, *asked, place="0")}
    named = (await db.execute(text(_TOOLS), {"agent": agent_id, "used": list(used)})).all()
    names = {row.id: row.name for row in named}
    tools = [row | {"tool_name": names.get(tool_id)} for tool_id, row in used.items() if row["calls"] or tool_id in names]
    tools += [_nothing(TOOL) | {"tool_id": row.id, "tool_name": row.name} for row in named if row.assigned and row.id not in used]
    tools.sort(key=lambda row: (-uses(row), row["tool_name"] or ""))
    return {"timezone": zone, "agent": agent, "models": sorted(models, key=lambda row: -row["calls"]), "tools": tools}


async def step_by_step(
    db: AsyncConnection, workspace_id: UUID, agent_id: UUID, days: Days, by: Step = "day"
) -> tuple[str, list[tuple[Row, Row]]]:
    """Day by day, or hour by hour, what the agent and all its model calls came to, each with `place`; and the workspace's time zone.

    `place` is the day, or the moment at which the hour begins. Those in which nothing happened are left out.

    Raises:
        Rejected: hours of too many days.
    """
    if by == "hour" and (days.last - days.first).days >= LONGEST_DAYS_BY_HOUR:
        raise Rejected(f"From `from` to `to` there may be {LONGEST_DAYS_BY_HOUR} days by hour.")
    zone, grain = await _zone(db, workspace_id, agent_id, days)
    asked = (workspace_id, [agent_id], zone, days, "quarter" if by == "hour" else grain)
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
    rows = await _sums(db, AGENT, workspace_id, list(agent_ids), "UTC", None, "total", place="agent_id")
    told = {row["place"]: row for row in rows}
    counts = {row.agent_id: row.tools for row in await db.execute(text(_TOOL_COUNTS), {"agents": list(agent_ids)})}
    return {one: told.get(one, _nothing(AGENT)) | {"tool_count": counts.get(one, 0)} for one in agent_ids}


def uses(row: Mapping[str, Any]) -> int:
    """How often a tool was used: calls that came to an end, or whose end nobody heard; not those that a person denied."""
    return int(row["calls"] - row["denied_calls"])


_DAY = local_date('f."when"', ":zone")
_PLACES: dict[Step, str] = {"day": _DAY, "hour": "date_trunc('hour', f.\"when\", :zone)"}
# By date, since a day need not be all that is between two midnights; and by time, roughly, for the index.
_BETWEEN = f"""{_DAY} BETWEEN :first AND :last
    AND f."when" >= CAST(:first AS timestamp) AT TIME ZONE 'UTC' - interval '2 days'
    AND f."when" <= CAST(:last AS timestamp) AT TIME ZONE 'UTC' + interval '2 days'"""


async def _zone(db: AsyncConnection, workspace_id: UUID, agent_id: UUID, days: Days | None) -> tuple[str, str]:
    """The workspace's time zone, and which rollups answer: a day's, unless its days are still cut in the zone before."""
    row = (await db.execute(text(_ZONE), {"workspace": workspace_id, "agent": agent_id})).one_or_none()
    if row is None:
        raise NotFound("no such workspace")
    return row.timezone, "total" if days is None else "quarter" if row.cut is False else "day"


async def _sums(
    db: AsyncConnection, sums: Sums, workspace_id: UUID, agents: list[UUID], zone: str, days: Days | None, grain: str, *, place: str
) -> list[Row]:
    """What facts and rollups come to together, by `place` (SQL over `f`) and what the rollup is by."""
    by = "".join(f", f.{column}" for column in sums.by)
    between = _BETWEEN if days else "true"
    parameters = {"workspace": workspace_id, "agents": agents, "zone": zone, "grain": grain}
    if days:
        parameters |= {"first": days.first, "last": days.last}
    statement = f"""
    SELECT {place} AS place{by}, {sums.summed}
    FROM (SELECT r.*, r.start AS "when" FROM {sums.table} r
          WHERE r.workspace_id = :workspace AND r.agent_id = ANY (:agents) AND r.grain = :grain) f
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
