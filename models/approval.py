"""A person's decision about one tool call."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKeyConstraint, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from engine.enums import ApprovalStatus
from models.base import Base, CreatedAt, Id, one_of


class ApprovalRow(Base):
    """A requested approval and its decision. It allows one call of this tool with these arguments in this session, once.

    `arguments_hash` is `engine.turn.decide.approval_hash` of the arguments that may be run: of `edited_arguments`, if a person edited them.
    """

    __tablename__ = "approvals"
    id: Mapped[Id]
    workspace_id: Mapped[UUID]
    session_id: Mapped[UUID]
    turn_id: Mapped[UUID]
    tool_call_id: Mapped[str]
    tool_id: Mapped[UUID | None]
    tool_name: Mapped[str]
    arguments: Mapped[dict[str, Any] | None]
    arguments_hash: Mapped[str]
    status: Mapped[str] = mapped_column(server_default=text("'pending'"))
    requested_at: Mapped[CreatedAt]
    expires_at: Mapped[datetime]
    decided_by: Mapped[str | None]
    decided_at: Mapped[datetime | None]
    reason: Mapped[str | None]
    edited_arguments: Mapped[dict[str, Any] | None]
    used_at: Mapped[datetime | None]

    __table_args__ = (
        ForeignKeyConstraint(["workspace_id", "turn_id"], ["turns.workspace_id", "turns.id"]),
        UniqueConstraint("session_id", "tool_call_id"),
        Index("ix_approvals_page", "workspace_id", "requested_at", "id"),
        Index("ix_approvals_turn_id", "turn_id"),
        Index("ix_approvals_pending", "expires_at", postgresql_where=text("status = 'pending'")),
        CheckConstraint(one_of("status", ApprovalStatus), "status"),
    )
