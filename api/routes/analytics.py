"""What agents came to: from the rollups and what has not been added to them yet."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID
from zoneinfo import ZoneInfo

from fastapi import Query, Response

from api.dependencies import AppStateDep, CallerDep, router
from api.responses import Json
from api.schemas import analytics as answers
from engine import histogram
from engine.histogram import Histogram
from store.analytics import queries
from store.analytics.queries import Days, Step
from store.catalog import agents

routes = router("analytics")
From = Query(alias="from", description="The first day, in the workspace's time zone.")
To = Query(alias="to", description="The last day.")
By = Query(description="Whether the days themselves are shown, or their hours.")
KINDS = ("input", "cached_input", "cache_write", "output", "reasoning")
CENTS = Decimal("0.0000000001")


@routes.get("/agents/{agent_id}/analytics", response_model=answers.Analytics)
async def get_agent_analytics(
    agent_id: UUID,
    caller: CallerDep,
    app_state: AppStateDep,
    first: Annotated[date | None, From] = None,
    last: Annotated[date | None, To] = None,
) -> Response:
    """Show what an agent came to, in all or between two days. It is exact as of now; only times are rounded to their buckets."""
    async with queries.snapshot(app_state.database, caller.workspace_id) as db:
        agent = await agents.get(db, agent_id)
        days = None if first is None and last is None else await queries.days(db, caller.workspace_id, first, last)
        told = await queries.in_all(db, caller.workspace_id, agent_id, days)
    return Json({"agent": agent} | _analytics(told, days))


@routes.get("/analytics", response_model=answers.WorkspaceAnalytics)
async def get_analytics(
    caller: CallerDep, app_state: AppStateDep, first: Annotated[date | None, From] = None, last: Annotated[date | None, To] = None
) -> Response:
    """Show what all agents of the workspace came to, deleted ones too, in all or between two days. It is exact as one agent's is."""
    async with queries.snapshot(app_state.database, caller.workspace_id) as db:
        days = None if first is None and last is None else await queries.days(db, caller.workspace_id, first, last)
        told = await queries.in_all(db, caller.workspace_id, None, days)
    return Json(_analytics(told, days))


@routes.get("/agents/{agent_id}/performance", response_model=answers.Performance)
async def get_agent_performance(
    agent_id: UUID,
    caller: CallerDep,
    app_state: AppStateDep,
    first: Annotated[date | None, From] = None,
    last: Annotated[date | None, To] = None,
    by: Annotated[Step, By] = "day",
) -> Response:
    """Show an agent day by day, 366 days at most, or hour by hour, 31 days at most.

    Without `to` the days end today; without `from` there are thirty.
    """
    async with queries.snapshot(app_state.database, caller.workspace_id) as db:
        await agents.get(db, agent_id)
        days = await queries.days(db, caller.workspace_id, first, last)
        zone, told = await queries.step_by_step(db, caller.workspace_id, agent_id, days, by)
    return Json(_performance(days, zone, told))


@routes.get("/performance", response_model=answers.Performance)
async def get_performance(
    caller: CallerDep,
    app_state: AppStateDep,
    first: Annotated[date | None, From] = None,
    last: Annotated[date | None, To] = None,
    by: Annotated[Step, By] = "day",
) -> Response:
    """Show all agents of the workspace together, deleted ones too, day by day, 366 days at most, or hour by hour, 31 days at most.

    Without `to` the days end today; without `from` there are thirty.
    """
    async with queries.snapshot(app_state.database, caller.workspace_id) as db:
        days = await queries.days(db, caller.workspace_id, first, last)
        zone, told = await queries.step_by_step(db, caller.workspace_id, None, days, by)
    return Json(_performance(days, zone, told))


def _performance(days: Days, zone: str, told: list[tuple[queries.Row, queries.Row]]) -> dict[str, Any]:
    items = [_place(agent, zone) | _came_to(agent, models) for agent, models in told]
    return {"period": _period(days), "timezone": zone, "items": items}


def _analytics(told: dict[str, Any], days: Days | None) -> dict[str, Any]:
    sums, models, tools = told["agent"], told["models"], told["tools"]
    return {
        "period": _period(days),
        "timezone": told["timezone"],
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
        "tokens": {kind: sum(row[f"{kind}_tokens"] for row in models) for kind in KINDS},
        "response_time": _times(sums["response_times"]),
        "stages": {
            "wait": _times(sums["wait_times"]),
            "work": _times(sums["work_times"]),
            "model": _times(histogram.merge(*(row["latencies"] for row in models))),
            "first_token": _times(histogram.merge(*(row["first_token_times"] for row in models))),
            "tool": _times(histogram.merge(*(row["latencies"] for row in tools))),
        },
        "model_stats": [_model(row) for row in models],
        "tool_stats": [_tool(row) for row in tools],
        "last_updated": datetime.now(UTC),
    }


def _model(row: dict[str, Any]) -> dict[str, Any]:
    told = {name: row[name] for name in ("provider", "model", "calls", "failed_calls", "unknown_calls", "unpriced_calls")}
    return told | {
        "tokens": _tokens(row),
        "cost": Decimal(row["cost_usd"]),
        "latency": _times(row["latencies"]),
        "first_token": _times(row["first_token_times"]),
    }


def _tool(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "tool_id": None if row["tool_id"] == queries.NO_TOOL else row["tool_id"],
        "tool_name": row["tool_name"],
        "use_count": queries.uses(row),
        **{state: row[f"{state}_calls"] for state in ("succeeded", "failed", "unknown", "denied")},
        "success_rate": _rate(row["succeeded_calls"], queries.uses(row)),
        "latency": _times(row["latencies"]),
        "last_used_at": row["last_used_at"],
    }


def _place(sums: dict[str, Any], zone: str) -> dict[str, Any]:
    place = sums["place"]
    return {"day": place.astimezone(ZoneInfo(zone)).date(), "hour": place} if isinstance(place, datetime) else {"day": place, "hour": None}


def _came_to(sums: dict[str, Any], models: dict[str, Any]) -> dict[str, Any]:
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
        "response_time": _times(sums["response_times"]),
    }


def _period(days: Days | None) -> str:
    return "all" if days is None else f"{days.first}/{days.last}"


def _outcomes(sums: dict[str, Any]) -> dict[str, int]:
    return {status: sums[f"turns_{status}"] for status in ("done", "failed", "dead", "cancelled")}


def _tokens(row: dict[str, Any]) -> dict[str, int]:
    return {kind: row[f"{kind}_tokens"] for kind in KINDS}


def _times(times: Histogram) -> dict[str, Any]:
    return {"count": histogram.count(times)} | {f"p{percent}": histogram.percentile(times, percent) for percent in (50, 95, 99)}


def _average(total: int, count: int) -> float | None:
    return total / count if count else None


def _average_cost(total: Decimal, count: int) -> Decimal | None:
    return (Decimal(total) / count).quantize(CENTS) if count else None


def _rate(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None
