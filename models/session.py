"""Sessions."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from engine.enums import SessionMode, SessionStatus, SessionType
from models.base import Base, BigCount, Count, CreatedAt, Id, JsonObject, UpdatedAt, one_of


class SessionRow(Base):
    """A session. Its row is the lock under which its log grows: offsets come from `next_offset`, and the lock is held until commit.

    `lease_owner` may write the session's turn until `lease_until` (the database's clock), and proves it with `lease_fence`.
    `dead_in_row` counts dead turns since the last reply; the third quarantines the session until an operator releases it.
    The counters equal a recount of the log and the ledger in every committed state. A session with a legal hold (`held_at`) is not
    deleted. Once `deleting_at` is set, the application no longer sees the session, and its rows are deleted in batches, this one last.
    `average_response_time` is in milliseconds, over answered turns. `counted`: its changes are recorded for analytics; false only for
    sessions from before analytics, until a job has counted them.
    """

    __tablename__ = "sessions"
    id: Mapped[Id]
    workspace_id: Mapped[UUID]
    agent_id: Mapped[UUID]
    user_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id"))
    customer_id: Mapped[str | None]
    mode: Mapped[str] = mapped_column(server_default=text("'auto'"))
    status: Mapped[str] = mapped_column(server_default=text("'active'"))
    title: Mapped[str | None]
    meta: Mapped[JsonObject] = mapped_column("metadata")
    variables: Mapped[JsonObject]
    session_type: Mapped[str] = mapped_column(server_default=text("'conversation'"))
    tags: Mapped[list[str]] = mapped_column(JSONB, server_default=text("'[]'::jsonb"))
    user_agent: Mapped[str | None]
    ip_address: Mapped[str | None]
    referrer: Mapped[str | None]
    locale: Mapped[str] = mapped_column(server_default=text("'en'"))
    timezone: Mapped[str] = mapped_column(server_default=text("'UTC'"))
    satisfaction_score: Mapped[int | None]
    average_response_time: Mapped[int | None]
    counted: Mapped[bool] = mapped_column(server_default=text("true"))

    next_offset: Mapped[Count]
    lease_fence: Mapped[BigCount]
    lease_owner: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    quarantined_at: Mapped[datetime | None]
    dead_in_row: Mapped[Count]

    event_count: Mapped[Count]
    message_count: Mapped[Count]
    tokens_used: Mapped[BigCount]
    input_tokens: Mapped[BigCount]
    cached_input_tokens: Mapped[BigCount]
    cache_write_tokens: Mapped[BigCount]
    output_tokens: Mapped[BigCount]
    reasoning_tokens: Mapped[BigCount]
    cost_usd: Mapped[Decimal] = mapped_column(server_default=text("0"))
    unpriced_calls: Mapped[Count]
    unknown_calls: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))

    started_at: Mapped[CreatedAt]
    last_activity_at: Mapped[CreatedAt]
    ended_at: Mapped[datetime | None]
    held_at: Mapped[datetime | None]
    held_by: Mapped[str | None]
    hold_reason: Mapped[str | None]
    deleting_at: Mapped[datetime | None]
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]

    __table_args__ = (
        ForeignKeyConstraint(["workspace_id", "agent_id"], ["agents.workspace_id", "agents.id"]),
        UniqueConstraint("workspace_id", "id"),
        Index("ix_sessions_page", "workspace_id", "created_at", "id"),
        Index("ix_sessions_workspace_id_agent_id", "workspace_id", "agent_id"),
        Index("ix_sessions_uncounted", "id", postgresql_where=text("NOT counted")),
        Index("ix_sessions_ended", "agent_id", "ended_at", postgresql_where=text("ended_at IS NOT NULL AND deleting_at IS NULL")),
        Index("ix_sessions_deleting", "deleting_at", "id", postgresql_where=text("deleting_at IS NOT NULL")),
        Index("ix_sessions_active", "id", postgresql_where=text("status = 'active'")),
        Index("ix_sessions_customer", "workspace_id", "customer_id", postgresql_where=text("customer_id IS NOT NULL")),
        CheckConstraint(one_of("mode", SessionMode), "mode"),
        CheckConstraint(one_of("status", SessionStatus), "status"),
        CheckConstraint(one_of("session_type", SessionType), "session_type"),
        # Room on each page for the many updates of a busy row to stay on it (no index is touched by them).
        {"postgresql_with": {"fillfactor": "70"}},
    )
