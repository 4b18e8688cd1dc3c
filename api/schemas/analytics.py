"""Analytics of agents and workspaces."""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated
from uuid import UUID

from pydantic import Field

from api.schemas.agents import Agent
from api.schemas.common import Money, ResponseBody

Percentage = Annotated[float | None, Field(description="A percentage; null if there is nothing to count.")]
Average = Annotated[float | None, Field(description="Null if there is nothing to average.")]
Period = Annotated[
    str, Field(description="`all`, or the first and last day in the workspace's time zone.", examples=["2026-11-01/2026-11-20"])
]
ZONE = Field(description="The workspace's time zone, a name of the IANA database.", examples=["Europe/Berlin"])


class Durations(ResponseBody):
    """Percentiles of `count` durations in milliseconds, accurate to five percent."""

    count: int
    p50: float | None
    p95: float | None
    p99: float | None


class Metrics(ResponseBody):
    """The period in five numbers. `average_response_time`: milliseconds from a message to its reply."""

    session_count: int
    message_count: int
    average_response_time: Average
    satisfaction_score: Average
    cost: Money


class SessionStats(ResponseBody):
    """The sessions that started in the period, with all their activity until now."""

    total_sessions: int
    active_sessions: int
    completed_sessions: int
    abandoned_sessions: int
    avg_message_count: Average
    avg_tokens_used: Average
    avg_cost: Money | None
    avg_satisfaction: Average
    completion_rate: Percentage


class TurnOutcomes(ResponseBody):
    """The number of turns that ended in the period, by outcome."""

    done: int
    failed: int
    dead: int
    cancelled: int


class Tokens(ResponseBody):
    """Tokens by kind. `input` includes cached_input and cache_write; `output` includes reasoning."""

    input: int
    cached_input: int
    cache_write: int
    output: int
    reasoning: int


class StageDurations(ResponseBody):
    """Durations of a turn's stages: waiting for a worker, running, model calls (and until the first token), tool calls."""

    wait: Durations
    work: Durations
    model: Durations
    first_token: Durations
    tool: Durations


class ModelStats(ResponseBody):
    """The calls to one model."""

    provider: str
    model: str
    calls: int
    failed_calls: int
    unknown_calls: Annotated[int, Field(description="Calls with an unknown outcome; they may be billed.")]
    unpriced_calls: Annotated[int, Field(description="Calls without a known price; the cost does not include them.")]
    tokens: Tokens
    cost: Money
    latency: Durations
    first_token: Durations


class ToolStats(ResponseBody):
    """The uses of one tool. Calls of tools that the agent does not have share an entry without id and name."""

    tool_id: UUID | None
    tool_name: str | None
    use_count: int
    succeeded: int
    failed: int
    unknown: int
    denied: Annotated[int, Field(description="Denied by a person; not counted as uses.")]
    success_rate: Percentage
    latency: Durations
    last_used_at: datetime | None


class WorkspaceAnalytics(ResponseBody):
    """The analytics of all agents of the workspace."""

    period: Period
    timezone: Annotated[str, ZONE]
    metrics: Metrics
    session_stats: SessionStats
    turns: TurnOutcomes
    tokens: Tokens
    response_time: Durations
    stages: StageDurations
    model_stats: list[ModelStats]
    tool_stats: Annotated[list[ToolStats], Field(description="The most used first.")]
    last_updated: datetime


class Analytics(WorkspaceAnalytics):
    """The analytics of one agent."""

    agent: Agent


class PerformanceStep(ResponseBody):
    """A day or an hour: the sessions that started in it with all their activity until now, and the activity of that time."""

    day: date
    hour: Annotated[datetime | None, Field(description="The start of the hour; null if the steps are days.")]
    session_count: int
    avg_message_count: Average
    avg_satisfaction: Average
    total_cost: Annotated[Money, Field(description="Of the sessions that started in it, whenever it was spent.")]
    completion_rate: Percentage
    message_count: Annotated[int, Field(description="Messages written in it.")]
    cost: Annotated[Money, Field(description="Spent in it.")]
    tokens: Tokens
    turns: TurnOutcomes
    response_time: Durations


class Performance(ResponseBody):
    """An agent or a workspace by day or hour. Steps without activity are left out."""

    period: Period
    timezone: Annotated[str, ZONE]
    items: list[PerformanceStep]
