"""Tool calls. The row is written before the request is sent."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKeyConstraint, Index
from sqlalchemy.orm import Mapped, mapped_column

from engine.enums import ToolCallState
from models.base import Base, Count, CreatedAt, one_of


class ToolCallRow(Base):
    """One tool call. `idempotency_key` is the same in every attempt and is sent with each; `attempts` counts requests.

    `tool_id` is null if the model named a tool that the agent does not have.
    """

    __tablename__ = "tool_calls"
    session_id: Mapped[UUID] = mapped_column(primary_key=True)
    tool_call_id: Mapped[str] = mapped_column(primary_key=True)
    workspace_id: Mapped[UUID]
    turn_id: Mapped[UUID]
    step: Mapped[int]
    position: Mapped[int]
    tool_id: Mapped[UUID | None]
    integration_id: Mapped[UUID | None]
    tool_name: Mapped[str]
    effect: Mapped[str | None]
    state: Mapped[str]
    arguments: Mapped[dict[str, Any] | None]
    arguments_hash: Mapped[str]
    idempotency_key: Mapped[str]
    attempts: Mapped[Count]
    latency_ms: Mapped[int | None]
    error: Mapped[str | None]
    created_at: Mapped[CreatedAt]
    settled_at: Mapped[datetime | None]

    __table_args__ = (
        ForeignKeyConstraint(["workspace_id", "turn_id"], ["turns.workspace_id", "turns.id"]),
        Index("uq_tool_calls_workspace_id_idempotency_key", "workspace_id", "idempotency_key", unique=True),
        Index("ix_tool_calls_turn_id", "turn_id"),
        CheckConstraint(
            one_of("state", ToolCallState),
            "state",
        ),
    )
