"""From a customer's message to a rest."""

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
    """A turn. In a session, turns own the log by ranges: a customer's message belongs to the turn with the
    greatest `opened_at_offset` not above its own offset, and is answered by it once `read_through_offset` has reached it.

    `writes` numbers the commits of a claim, so that one whose reply was lost is recognised when it is sent again.
    `rings` counts how often the sweep has rung it since it was last claimed; `place` is where it stands in being rung at all:
    behind another turn of its session, waiting for room in its workspace's window, or granted. `running_s` is the time workers
    have spent on it, waits not counted. `agent_digest` names the snapshot of the agent it runs with. `endings` are its last claims that
    ended badly, each with `claimed_at`, `error_class` and `detail`.
    """

    __tablename__ = "turns"
    id: Mapped[Id]
    workspace_id: Mapped[UUID]
    session_id: Mapped[UUID]
    status: Mapped[str] = mapped_column(server_default=text("'queued'"))
    strategy: Mapped[str] = mapped_column(server_default=text("'coalesce'"))
    opened_at_offset: Mapped[int]
    read_through_offset: Mapped[int | None]
    agent_version: Mapped[int | None]
    attempts: Mapped[Count]
    writes: Mapped[Count]
    fence: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    not_before: Mapped[datetime | None]
    dispatched_at: Mapped[datetime | None]
    dispatch_count: Mapped[Count]
    admission: Mapped[str] = mapped_column(server_default=text("'pending'"))
    admitted_at: Mapped[datetime | None]  # set by a trigger, whoever grants the place
    cancel_requested_at: Mapped[datetime | None]
    cancel_reason: Mapped[str | None]
    cancelled_by: Mapped[str | None]
    agent_digest: Mapped[str | None]
    running_s: Mapped[float] = mapped_column(Double, server_default=text("0"))
    redrives: Mapped[Count]
    endings: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, server_default=text("'[]'::jsonb"))
    error_class: Mapped[str | None]
    error_detail: Mapped[str | None]
    opened_at: Mapped[CreatedAt]
    started_at: Mapped[datetime | None]
    claimed_at: Mapped[datetime | None]
    settled_at: Mapped[datetime | None]
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
