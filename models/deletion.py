"""What was deleted, and when: of each session by its id, and of each customer who was erased."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, LargeBinary, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from engine.enums import DeletionReason
from models.base import Base, Count, CreatedAt, Id, JsonObject, one_of


class DeletionRow(Base):
    """A session that was deleted, or (`finished_at` null) is being deleted: how many rows of each kind went with it so far."""

    __tablename__ = "deletions"
    session_id: Mapped[UUID] = mapped_column(primary_key=True)
    workspace_id: Mapped[UUID] = mapped_column(ForeignKey("workspaces.id"))
    agent_id: Mapped[UUID]
    reason: Mapped[str]
    erasure_id: Mapped[UUID | None]
    begun_at: Mapped[CreatedAt]
    finished_at: Mapped[datetime | None]
    events: Mapped[Count]
    turns: Mapped[Count]
    model_calls: Mapped[Count]
    tool_calls: Mapped[Count]
    approvals: Mapped[Count]

    __table_args__ = (
        CheckConstraint(one_of("reason", DeletionReason), "reason"),
        ForeignKeyConstraint(["workspace_id", "erasure_id"], ["erasures.workspace_id", "erasures.id"]),
        Index("ix_deletions_begun_at", "begun_at"),
        Index("ix_deletions_erasure_id", "erasure_id", postgresql_where=text("erasure_id IS NOT NULL")),
    )


class ErasureRow(Base):
    """A customer who was erased: the receipt, with `deletions` of the same `erasure_id`.

    `customer_sha256` is of their id in UTF-8, so that the receipt proves that they were erased and does not name them. `broker`: how many
    messages of theirs were taken out of which queue.
    """

    __tablename__ = "erasures"
    id: Mapped[Id]
    workspace_id: Mapped[UUID] = mapped_column(ForeignKey("workspaces.id"))
    customer_sha256: Mapped[bytes] = mapped_column(LargeBinary)
    asked_by: Mapped[str]
    started_at: Mapped[CreatedAt]
    finished_at: Mapped[datetime | None]
    broker: Mapped[JsonObject]

    __table_args__ = (
        UniqueConstraint("workspace_id", "id"),
        Index("uq_erasures_unfinished", "workspace_id", "customer_sha256", unique=True, postgresql_where=text("finished_at IS NULL")),
    )
