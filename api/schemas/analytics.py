"""What analytics look like."""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated
from uuid import UUID

from pydantic import Field

from api.schemas.responses import Agent, Answer, Money

Rate = Annotated[float | None, Field(description="Of a hundred; null of nothing.")]
Average = Annotated[float | None, Field(description="Null of nothing.")]
Period = Annotated[
    str, Field(description="`all`, or two days of the workspace's time zone, both among them.", examples=["2026-11-01/2026-11-20"])
]
ZONE = Field(description="The workspace's: a name of the IANA database.", examples=["Europe/Berlin"])


class Times(Answer):
    """How long something took, in milliseconds, within five of a hundred: of `count` times, half were no longer than `p50`."""

    count: int
    p50: float | None
    p95: float | None
    p99: float | None


class Metrics(Answer):
    """The period in five numbers. `average_response_time`: milliseconds from a message to its reply."""

    session_count: int
    message_count: int
    average_response_time: Average
    satisfaction_score: Average
    cost: Money


class SessionStats(Answer):
    """The sessions that started in the period, with all they have come to by now."""

    total_sessions: int
    active_sessions: int
    completed_sessions: int
    abandoned_sessions: int
    avg_message_count: Average
    avg_tokens_used: Average
    avg_cost: Money | None
    avg_satisfaction: Average
    completion_rate: Rate


class Outcomes(Answer):
    """How the turns of the period ended."""

    done: int
    failed: int
    dead: int
    cancelled: int


class Tokens(Answer):
    """Tokens by kind. Cached ones and those written to a cache are among the input's, reasoning among the output's."""

    input: int
    cached_input: int
    cache_write: int
    output: int
    reasoning: int


class StageTimes(Answer):
    """Where turns spent their time: waiting for a worker, carried by one, in model calls (until the first token), in tool calls."""

    wait: Times
    work: Times
    model: Times
    first_token: Times
    tool: Times


class ModelStats(Answer):
    """What was asked of a model."""

    provider: str
    model: str
    calls: int
    failed_calls: int
    unknown_calls: Annotated[int, Field(description="Nobody heard how they ended; they may be billed.")]
    unpriced_calls: Annotated[int, Field(description="No price is known for them; they are not in the cost.")]
    tokens: Tokens
    cost: Money
    latency: Times
    first_token: Times


class ToolStats(Answer):
    """What a tool was used for. Without id and name: tools that the model asked for and the agent does not have."""

    tool_id: UUID | None
    tool_name: str | None
    use_count: int
    succeeded: int
    failed: int
    unknown: int
    denied: Annotated[int, Field(description="By a person; not among the uses.")]
    success_rate: Rate
    latency: Times
    last_used_at: datetime | None


class WorkspaceAnalytics(Answer):
    """What all agents of the workspace came to."""

    period: Period
    timezone: Annotated[str, ZONE]
    metrics: Metrics
    session_stats: SessionStats
    turns: Outcomes
    tokens: Tokens
    response_time: Times
    stages: StageTimes
    model_stats: list[ModelStats]
    tool_stats: Annotated[list[ToolStats], Field(description="The most used first.")]
    last_updated: datetime


class Analytics(WorkspaceAnalytics):
    """What an agent came to."""

    agent: Agent


class PerformanceStep(Answer):
    """A day, or an hour: the sessions that started on it with all they have come to by now, and what happened on it."""

    day: date
    hour: Annotated[datetime | None, Field(description="When it begins, where the days are shown by hour.")]
    session_count: int
    avg_message_count: Average
    avg_satisfaction: Average
    total_cost: Annotated[Money, Field(description="Of the sessions that started on it, whenever it was spent.")]
    completion_rate: Rate
    message_count: Annotated[int, Field(description="Said on it.")]
    cost: Annotated[Money, Field(description="Spent on it.")]
    tokens: Tokens
    turns: Outcomes
    response_time: Times


class Performance(Answer):
    """An agent, or all of a workspace, day by day, or hour by hour. Those on which nothing happened are left out."""

    period: Period
    timezone: Annotated[str, ZONE]
    items: list[PerformanceStep]
