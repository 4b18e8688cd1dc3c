"""Turns."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, Double, ForeignKeyConstraint, Index, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from engine.enums import OPEN_TURNS, Admission, Strategy, TurnStatus
from models.base import Base, Count, CreatedAt, Id, UpdatedAt, one_of

OPEN = one_of("status", OPEN_TURNS)
IN_FLIGHT = one_of("status", (TurnStatus.QUEUED, TurnStatus.RUNNING))
"""SQL conditions on turns. With an alias: f"t.{OPEN}"."""


class TurnRow(Base):
    """A turn: from a customer's message to its outcome.

    In a session, turns own the log by ranges: a customer's message belongs to the turn with the greatest `opened_at_offset` that is not
    above its own offset. It is answered by that turn once `read_through_offset` has reached it.
    """

    __tablename__ = "turns"
    id: Mapped[Id]
    workspace_id: Mapped[UUID]
    session_id: Mapped[UUID]
    status: Mapped[str] = mapped_column(server_default=text("'queued'"))
    """A TurnStatus. accept_message opens a turn as queued; claim_turn makes it running; write_turn parks or ends it."""
    strategy: Mapped[str] = mapped_column(server_default=text("'coalesce'"))
    """The Strategy of the message that opened it. Never changes."""
    opened_at_offset: Mapped[int]
    """The offset of the message that opened it. Never changes."""
    read_through_offset: Mapped[int | None]
    """The last customer message that it has read. Grows with each model call; null before the first claim and after a redrive."""
    agent_version: Mapped[int | None]
    agent_digest: Mapped[str | None]
    """The agent's version and the digest of its snapshot, set by the first claim. A redrive from scratch clears the digest."""
    attempts: Mapped[Count]
    """Claims since the turn was opened or redriven. Parking with a refund takes one back, so that waits do not use attempts up."""
    writes: Mapped[Count]
    """Commits so far. write_turn compares it, to recognise a commit that is sent again because its reply was lost."""
    fence: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    """The fence of the last claim."""
    not_before: Mapped[datetime | None]
    """The end of a park: a retry's time, or when an approval expires. Cleared by the next claim and at the end."""
    dispatched_at: Mapped[datetime | None]
    dispatch_count: Mapped[Count]
    """The time at which `turns.advance` was last published for it; the sweep's dispatches since the last claim. Cleared by parking."""
    admission: Mapped[str] = mapped_column(server_default=text("'pending'"))
    """An Admission; only an admitted turn may be dispatched. admit_first, admit_next and the sweep admit it; parking makes it pending."""
    admitted_at: Mapped[datetime | None]
    """The time of its last admission. Set by the trigger turns_admitted."""
    cancel_requested_at: Mapped[datetime | None]
    cancel_reason: Mapped[str | None]
    cancelled_by: Mapped[str | None]
    """Set by the first request to cancel it (cancel_turn): when, the CancelReason, and who. Cleared by a redrive."""
    running_s: Mapped[float] = mapped_column(Double, server_default=text("0"))
    """Seconds that workers have spent on it, added when a claim ends; waits are not counted. A redrive sets it to 0."""
    redrives: Mapped[Count]
    """The number of times that an operator redrove it."""
    endings: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, server_default=text("'[]'::jsonb"))
    """The last twenty claims that ended badly, each with `claimed_at`, `error_class` and `detail`. Added by the next claim or redrive."""
    error_class: Mapped[str | None]
    error_detail: Mapped[str | None]
    """The reason for its failure, cancellation or park. The detail is a sentence, or an object with a code (engine/sentences.py)."""
    opened_at: Mapped[CreatedAt]
    started_at: Mapped[datetime | None]
    """The first claim since the turn was opened or redriven."""
    claimed_at: Mapped[datetime | None]
    """The last claim."""
    settled_at: Mapped[datetime | None]
    """The time at which it ended. Cleared by a redrive."""
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]

    __table_args__ = (
        ForeignKeyConstraint(["workspace_id", "session_id"], ["sessions.workspace_id", "sessions.id"]),
        UniqueConstraint("workspace_id", "id"),
        UniqueConstraint("session_id", "opened_at_offset"),
        Index("uq_turns_one_live", "session_id", unique=True, postgresql_where=text("status IN ('running', 'waiting')")),
        Index("ix_turns_open", "session_id", "opened_at_offset", postgresql_where=text(OPEN)),
        Index("ix_turns_open_by_workspace", "workspace_id", "opened_at", postgresql_where=text(OPEN)),
        Index("ix_turns_admitted", "workspace_id", postgresql_where=text(f"admission = 'admitted' AND {IN_FLIGHT}")),
        Index("ix_turns_pending", "workspace_id", "opened_at", postgresql_where=text("admission = 'pending' AND status = 'queued'")),
        Index("ix_turns_cancelling", "session_id", postgresql_where=text("status = 'running' AND cancel_requested_at IS NOT NULL")),
        CheckConstraint(one_of("status", TurnStatus), "status"),
        CheckConstraint(one_of("strategy", Strategy), "strategy"),
        CheckConstraint(one_of("admission", Admission), "admission"),
        {"postgresql_with": {"fillfactor": "80"}},
    )
