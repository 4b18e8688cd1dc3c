"""Analytics: facts that are not rolled up yet, and the sums by quarter of an hour, by day and in total."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, ForeignKeyConstraint, Identity, Index, SmallInteger, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, declared_attr, mapped_column

from engine.enums import Grain
from models.base import Base, BigCount, Count, one_of

NONE = text("0")


class UsageFactRow(Base):
    """A change that analytics count. The transaction that makes the change inserts it; the roll-up deletes it.

    `n` is -1 if the change takes something back. For a session, `at` is its last activity, and `started_at` says which day's sessions
    it counts among; `messages_then` are the messages at `at`, `messages` those of the session that started at `started_at`.
    """

    __tablename__ = "usage_facts"
    workspace_id: Mapped[UUID] = mapped_column(primary_key=True)
    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    agent_id: Mapped[UUID]
    kind: Mapped[str]
    n: Mapped[int] = mapped_column(SmallInteger, server_default=text("1"))
    at: Mapped[datetime]
    session_id: Mapped[UUID]
    state: Mapped[str | None]
    started_at: Mapped[datetime | None]
    started: Mapped[int] = mapped_column(SmallInteger, server_default=NONE)
    active: Mapped[int] = mapped_column(SmallInteger, server_default=NONE)
    completed: Mapped[int] = mapped_column(SmallInteger, server_default=NONE)
    abandoned: Mapped[int] = mapped_column(SmallInteger, server_default=NONE)
    messages: Mapped[Count]
    messages_then: Mapped[Count]
    tokens: Mapped[BigCount]
    cost_usd: Mapped[Decimal] = mapped_column(server_default=NONE)
    satisfaction: Mapped[Count]
    rated: Mapped[int] = mapped_column(SmallInteger, server_default=NONE)
    duration_s: Mapped[int | None] = mapped_column(BigInteger)
    waited_ms: Mapped[int | None]
    running_ms: Mapped[int | None]
    took_ms: Mapped[int | None]
    first_token_ms: Mapped[int | None]
    provider: Mapped[str | None]
    model: Mapped[str | None]
    tool_id: Mapped[UUID | None]
    input_tokens: Mapped[Count]
    cached_input_tokens: Mapped[Count]
    cache_write_tokens: Mapped[Count]
    output_tokens: Mapped[Count]
    reasoning_tokens: Mapped[Count]
    unpriced: Mapped[bool] = mapped_column(server_default=text("false"))


class Rollup(Base):
    """A sum over a period that begins at `start`: a quarter of an hour, a day in the workspace's time zone, or all time.

    Hours and days of every time zone consist of whole quarters. Sums are only added to and never recomputed, because the rows they came
    from may be deleted. Histograms are of milliseconds, in the format of `engine.histogram`.
    """

    __abstract__ = True
    workspace_id: Mapped[UUID] = mapped_column(primary_key=True)
    agent_id: Mapped[UUID] = mapped_column(primary_key=True)
    grain: Mapped[str] = mapped_column(primary_key=True)
    start: Mapped[datetime] = mapped_column(primary_key=True)

    @declared_attr.directive
    @classmethod
    def __table_args__(cls) -> tuple[Any, ...]:
        """Return the constraints of every rollup: the agent, and a known grain."""
        return (
            ForeignKeyConstraint(["workspace_id", "agent_id"], ["agents.workspace_id", "agents.id"]),
            CheckConstraint(one_of("grain", Grain), "grain"),
        )


def _histogram() -> Any:
    return mapped_column(JSONB, server_default=text("'{}'::jsonb"))


class AgentRollupRow(Rollup):
    """The sums of an agent's sessions and turns. `cohort_*`: the sums up to now of the sessions that started in the period.

    In a total row, `timezone` is the zone of the agent's days; while the days are being recomputed for a new zone, they are done up to
    `days_cut_to`. `folded`: the totals in the agent's own row are up to date.
    """

    __tablename__ = "agent_rollups"
    sessions_started: Mapped[BigCount]
    sessions_completed: Mapped[BigCount]
    sessions_abandoned: Mapped[BigCount]
    active_sessions: Mapped[BigCount]
    durations: Mapped[BigCount]
    duration_s: Mapped[BigCount]
    messages: Mapped[BigCount]
    turns_done: Mapped[BigCount]
    turns_failed: Mapped[BigCount]
    turns_dead: Mapped[BigCount]
    turns_cancelled: Mapped[BigCount]
    response_ms: Mapped[BigCount]
    cohort_completed: Mapped[BigCount]
    cohort_abandoned: Mapped[BigCount]
    cohort_messages: Mapped[BigCount]
    cohort_tokens: Mapped[BigCount]
    cohort_cost_usd: Mapped[Decimal] = mapped_column(server_default=NONE)
    cohort_satisfaction: Mapped[BigCount]
    cohort_rated: Mapped[BigCount]
    response_times: Mapped[dict[str, Any]] = _histogram()
    wait_times: Mapped[dict[str, Any]] = _histogram()
    work_times: Mapped[dict[str, Any]] = _histogram()
    last_active_at: Mapped[datetime | None]
    timezone: Mapped[str | None]
    days_cut_to: Mapped[date | None]
    folded: Mapped[bool] = mapped_column(server_default=text("false"))

    @declared_attr.directive
    @classmethod
    def __table_args__(cls) -> tuple[Any, ...]:
        """Return the constraints of every rollup and the index of totals that are not in the agents' rows yet."""
        due = text("grain = 'total' AND NOT folded")
        return (*super().__table_args__, Index("ix_agent_rollups_due", "workspace_id", "agent_id", postgresql_where=due))


class ModelRollupRow(Rollup):
    """The sums of an agent's calls of a model."""

    __tablename__ = "model_rollups"
    provider: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    calls: Mapped[BigCount]
    settled_calls: Mapped[BigCount]
    failed_calls: Mapped[BigCount]
    unknown_calls: Mapped[BigCount]
    unpriced_calls: Mapped[BigCount]
    input_tokens: Mapped[BigCount]
    cached_input_tokens: Mapped[BigCount]
    cache_write_tokens: Mapped[BigCount]
    output_tokens: Mapped[BigCount]
    reasoning_tokens: Mapped[BigCount]
    cost_usd: Mapped[Decimal] = mapped_column(server_default=NONE)
    latencies: Mapped[dict[str, Any]] = _histogram()
    first_token_times: Mapped[dict[str, Any]] = _histogram()


class ToolRollupRow(Rollup):
    """The sums of an agent's calls of a tool. Calls of tools that it does not have are under the nil id."""

    __tablename__ = "tool_rollups"
    tool_id: Mapped[UUID] = mapped_column(primary_key=True)
    calls: Mapped[BigCount]
    succeeded_calls: Mapped[BigCount]
    failed_calls: Mapped[BigCount]
    denied_calls: Mapped[BigCount]
    unknown_calls: Mapped[BigCount]
    latencies: Mapped[dict[str, Any]] = _histogram()
    last_used_at: Mapped[datetime | None]
    folded: Mapped[bool] = mapped_column(server_default=text("false"))

    @declared_attr.directive
    @classmethod
    def __table_args__(cls) -> tuple[Any, ...]:
        """Return the constraints of every rollup, the index of totals that are not in the tools' rows yet, and that of a tool's totals."""
        total = "grain = 'total'"
        return (
            *super().__table_args__,
            Index("ix_tool_rollups_due", "workspace_id", "tool_id", postgresql_where=text(f"{total} AND NOT folded")),
            Index("ix_tool_rollups_of_tool", "workspace_id", "tool_id", postgresql_where=text(total)),
        )
