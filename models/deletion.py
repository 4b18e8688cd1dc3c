"""Records of deleted sessions and erased customers."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, LargeBinary, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from engine.enums import DeletionReason
from models.base import Base, Count, CreatedAt, Id, JsonObject, one_of


class DeletionRow(Base):
    """A session that was deleted, or is being deleted (`finished_at` is null), with the number of rows of each kind deleted so far."""

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
    """The receipt for an erased customer, together with the `deletions` of the same `erasure_id`.

    `customer_sha256` is the digest of their id in UTF-8: the receipt proves the erasure without naming them. `broker`: how many of their
    messages were removed from each queue.
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
