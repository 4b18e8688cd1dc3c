"""Analytics: computed from the rollups and from the rows that have not been rolled up yet, so exact at any time."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID
from zoneinfo import ZoneInfo

from fastapi import Query, Response

from api.dependencies import AppStateDep, CallerDep, router
from api.responses import Json
from api.schemas import analytics as schemas
from engine import histogram
from engine.histogram import Histogram
from store.analytics import queries
from store.analytics.queries import Days, Step
from store.catalog import agents

routes = router("analytics")
From = Query(alias="from", description="The first day, in the workspace's time zone.")
To = Query(alias="to", description="The last day.")
By = Query(description="The length of a step.")
TOKEN_KINDS = ("input", "cached_input", "cache_write", "output", "reasoning")
COST_DIGITS = Decimal("0.0000000001")


@routes.get("/agents/{agent_id}/analytics", response_model=schemas.Analytics)
async def get_agent_analytics(
    agent_id: UUID,
    caller: CallerDep,
    app_state: AppStateDep,
    first: Annotated[date | None, From] = None,
    last: Annotated[date | None, To] = None,
) -> Response:
    """Show an agent's totals, over all time or between two days. They are exact at this moment, except for the percentiles."""
    async with queries.snapshot(app_state.database, caller.workspace_id) as db:
        agent = await agents.get(db, agent_id)
        days = None if first is None and last is None else await queries.days(db, caller.workspace_id, first, last)
        totals = await queries.in_all(db, caller.workspace_id, agent_id, days)
    return Json({"agent": agent} | _analytics(totals, days))


@routes.get("/analytics", response_model=schemas.WorkspaceAnalytics)
async def get_analytics(
    caller: CallerDep, app_state: AppStateDep, first: Annotated[date | None, From] = None, last: Annotated[date | None, To] = None
) -> Response:
    """Show the totals of all agents of the workspace, including deleted ones, over all time or between two days."""
    async with queries.snapshot(app_state.database, caller.workspace_id) as db:
        days = None if first is None and last is None else await queries.days(db, caller.workspace_id, first, last)
        totals = await queries.in_all(db, caller.workspace_id, None, days)
    return Json(_analytics(totals, days))


@routes.get("/agents/{agent_id}/performance", response_model=schemas.Performance)
async def get_agent_performance(
    agent_id: UUID,
    caller: CallerDep,
    app_state: AppStateDep,
    first: Annotated[date | None, From] = None,
    last: Annotated[date | None, To] = None,
    by: Annotated[Step, By] = "day",
) -> Response:
    """Show an agent by day, for at most 366 days, or by hour, for at most 31 days.

    `to` defaults to today, and `from` to the thirty days that end with `to`.
    """
    async with queries.snapshot(app_state.database, caller.workspace_id) as db:
        await agents.get(db, agent_id)
        days = await queries.days(db, caller.workspace_id, first, last)
        zone, totals = await queries.step_by_step(db, caller.workspace_id, agent_id, days, by)
    return Json(_performance(days, zone, totals))


@routes.get("/performance", response_model=schemas.Performance)
async def get_performance(
    caller: CallerDep,
    app_state: AppStateDep,
    first: Annotated[date | None, From] = None,
    last: Annotated[date | None, To] = None,
    by: Annotated[Step, By] = "day",
) -> Response:
    """Show the workspace by day, for at most 366 days, or by hour, for at most 31 days. Deleted agents are included.

    `to` defaults to today, and `from` to the thirty days that end with `to`.
    """
    async with queries.snapshot(app_state.database, caller.workspace_id) as db:
        days = await queries.days(db, caller.workspace_id, first, last)
        zone, totals = await queries.step_by_step(db, caller.workspace_id, None, days, by)
    return Json(_performance(days, zone, totals))


def _performance(days: Days, zone: str, totals: list[tuple[queries.Row, queries.Row]]) -> dict[str, Any]:
    items = [_step(agent, zone) | _activity(agent, models) for agent, models in totals]
    return {"period": _period(days), "timezone": zone, "items": items}


def _analytics(totals: dict[str, Any], days: Days | None) -> dict[str, Any]:
    sums, models, tools = totals["agent"], totals["models"], totals["tools"]
    return {
        "period": _period(days),
        "timezone": totals["timezone"],
        "metrics": {
            "session_count": sums["sessions_started"],
            "message_count": sums["messages"],
            "average_response_time": _average(sums["response_ms"], sums["turns_done"]),
            "satisfaction_score": _average(sums["cohort_satisfaction"], sums["cohort_rated"]),
            "cost": sum((row["cost_usd"] for row in models), Decimal(0)),
        },
        "session_stats": {
            "total_sessions": sums["sessions_started"],
            "active_sessions": sums["active_sessions"],
            "completed_sessions": sums["cohort_completed"],
            "abandoned_sessions": sums["cohort_abandoned"],
            "avg_message_count": _average(sums["cohort_messages"], sums["sessions_started"]),
            "avg_tokens_used": _average(sums["cohort_tokens"], sums["sessions_started"]),
            "avg_cost": _average_cost(sums["cohort_cost_usd"], sums["sessions_started"]),
            "avg_satisfaction": _average(sums["cohort_satisfaction"], sums["cohort_rated"]),
            "completion_rate": _rate(sums["cohort_completed"], sums["sessions_started"]),
        },
        "turns": _outcomes(sums),
        "tokens": {kind: sum(row[f"{kind}_tokens"] for row in models) for kind in TOKEN_KINDS},
        "response_time": _durations(sums["response_times"]),
        "stages": {
            "wait": _durations(sums["wait_times"]),
            "work": _durations(sums["work_times"]),
            "model": _durations(histogram.merge(*(row["latencies"] for row in models))),
            "first_token": _durations(histogram.merge(*(row["first_token_times"] for row in models))),
            "tool": _durations(histogram.merge(*(row["latencies"] for row in tools))),
        },
        "model_stats": [_model(row) for row in models],
        "tool_stats": [_tool(row) for row in tools],
        "last_updated": datetime.now(UTC),
    }


def _model(row: dict[str, Any]) -> dict[str, Any]:
    totals = {name: row[name] for name in ("provider", "model", "calls", "failed_calls", "unknown_calls", "unpriced_calls")}
    return totals | {
        "tokens": _tokens(row),
        "cost": Decimal(row["cost_usd"]),
        "latency": _durations(row["latencies"]),
        "first_token": _durations(row["first_token_times"]),
    }


def _tool(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "tool_id": None if row["tool_id"] == queries.NO_TOOL else row["tool_id"],
        "tool_name": row["tool_name"],
        "use_count": queries.uses(row),
        **{state: row[f"{state}_calls"] for state in ("succeeded", "failed", "unknown", "denied")},
        "success_rate": _rate(row["succeeded_calls"], queries.uses(row)),
        "latency": _durations(row["latencies"]),
        "last_used_at": row["last_used_at"],
    }


def _step(sums: dict[str, Any], zone: str) -> dict[str, Any]:
    start = sums["place"]
    return {"day": start.astimezone(ZoneInfo(zone)).date(), "hour": start} if isinstance(start, datetime) else {"day": start, "hour": None}


def _activity(sums: dict[str, Any], models: dict[str, Any]) -> dict[str, Any]:
    return {
        "session_count": sums["sessions_started"],
        "avg_message_count": _average(sums["cohort_messages"], sums["sessions_started"]),
        "avg_satisfaction": _average(sums["cohort_satisfaction"], sums["cohort_rated"]),
        "total_cost": Decimal(sums["cohort_cost_usd"]),
        "completion_rate": _rate(sums["cohort_completed"], sums["sessions_started"]),
        "message_count": sums["messages"],
        "cost": Decimal(models["cost_usd"]),
        "tokens": _tokens(models),
        "turns": _outcomes(sums),
        "response_time": _durations(sums["response_times"]),
    }


def _period(days: Days | None) -> str:
    return "all" if days is None else f"{days.first}/{days.last}"


def _outcomes(sums: dict[str, Any]) -> dict[str, int]:
    return {status: sums[f"turns_{status}"] for status in ("done", "failed", "dead", "cancelled")}


def _tokens(row: dict[str, Any]) -> dict[str, int]:
    return {kind: row[f"{kind}_tokens"] for kind in TOKEN_KINDS}


def _durations(times: Histogram) -> dict[str, Any]:
    return {"count": histogram.count(times)} | {f"p{percent}": histogram.percentile(times, percent) for percent in (50, 95, 99)}


def _average(total: int, count: int) -> float | None:
    return total / count if count else None


def _average_cost(total: Decimal, count: int) -> Decimal | None:
    return (Decimal(total) / count).quantize(COST_DIGITS) if count else None


def _rate(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None
