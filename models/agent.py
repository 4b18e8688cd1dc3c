"""Agents and their snapshots."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from engine.enums import AgentStatus, Strategy
from models.base import Base, BigCount, Count, CreatedAt, Id, UpdatedAt, one_of


class AgentRow(Base):
    """An agent: the configured persona that answers. `version` grows with every change; a turn keeps the version it started with.

    A scheduled job computes the totals from turns and ledger. Turns do not update them, because all turns of an agent would contend
    for its row.
    """

    __tablename__ = "agents"
    id: Mapped[Id]
    workspace_id: Mapped[UUID] = mapped_column(ForeignKey("workspaces.id"))
    created_by: Mapped[UUID | None] = mapped_column(ForeignKey("users.id"))
    name: Mapped[str]
    description: Mapped[str | None]
    status: Mapped[str] = mapped_column(server_default=text("'active'"))
    composition_mode: Mapped[str] = mapped_column(server_default=text("'fluid'"))
    system_prompt: Mapped[str | None]
    model_provider: Mapped[str] = mapped_column(server_default=text("'openai'"))
    model_name: Mapped[str] = mapped_column(server_default=text("'gpt-4'"))
    temperature: Mapped[int] = mapped_column(server_default=text("70"))
    max_tokens: Mapped[int] = mapped_column(server_default=text("2000"))
    conversation_style: Mapped[str] = mapped_column(server_default=text("'professional'"))
    strategy: Mapped[str] = mapped_column(server_default=text("'coalesce'"))
    allow_interruption: Mapped[bool] = mapped_column(server_default=text("true"))
    allow_proactive_messages: Mapped[bool] = mapped_column(server_default=text("false"))
    data_retention_days: Mapped[int] = mapped_column(server_default=text("30"))
    version: Mapped[int] = mapped_column(server_default=text("1"))
    total_sessions: Mapped[Count]
    total_messages: Mapped[BigCount]
    total_tokens_used: Mapped[BigCount]
    total_cost: Mapped[Decimal] = mapped_column(server_default=text("0"))
    average_session_duration: Mapped[int | None]
    last_active_at: Mapped[datetime | None]
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]
    deleted_at: Mapped[datetime | None]

    __table_args__ = (
        UniqueConstraint("workspace_id", "id"),
        Index("ix_agents_page", "workspace_id", "created_at", "id"),
        CheckConstraint(one_of("status", AgentStatus), "status"),
        CheckConstraint(one_of("strategy", Strategy), "strategy"),
        CheckConstraint("temperature BETWEEN 0 AND 100", "temperature"),
        CheckConstraint("max_tokens BETWEEN 1 AND 100000", "max_tokens"),
        CheckConstraint("data_retention_days BETWEEN 1 AND 365", "data_retention_days"),
    )


class AgentSnapshotRow(Base):
    """An agent and its tools as they were when a turn began, under the SHA-256 of that content. The same content is stored once."""

    __tablename__ = "agent_snapshots"
    agent_id: Mapped[UUID] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(primary_key=True)
    workspace_id: Mapped[UUID]
    version: Mapped[int]
    snapshot: Mapped[dict[str, Any]]
    created_at: Mapped[CreatedAt]

    __table_args__ = (ForeignKeyConstraint(["workspace_id", "agent_id"], ["agents.workspace_id", "agents.id"]),)
