"""Audits and worker processes, for operators. The rows belong to no workspace."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Count, CreatedAt, Id, JsonObject


class AuditRow(Base):
    """One run of `turnline audit`. `finished_at` is null while it runs, and stays null if it was killed.

    `checked`: how many sessions, turns, events and calls were checked. `violations`: name -> {"count", "ids"}, with a few ids of each.
    If `complete`, all sessions that were active after `since` were checked. Of the older ones, those from the previous audit's
    `older_after` to this one's were (null: to the last).
    """

    __tablename__ = "audits"
    id: Mapped[Id]
    started_at: Mapped[CreatedAt]
    finished_at: Mapped[datetime | None]
    since: Mapped[datetime | None]
    complete: Mapped[bool] = mapped_column(server_default=text("false"))
    older_after: Mapped[UUID | None]
    checked: Mapped[JsonObject]
    violations: Mapped[JsonObject]
    error: Mapped[str | None]


class WorkerRow(Base):
    """A worker process, by its node name, as its watchdog last saw it.

    `progress_at` is when it last got a reply from the broker, received a task or finished one. `stalls` counts how often the watchdog
    ended a worker of this name because it made no progress while turns were pending.
    """

    __tablename__ = "workers"
    name: Mapped[str] = mapped_column(primary_key=True)
    pid: Mapped[int]
    started_at: Mapped[CreatedAt]
    seen_at: Mapped[CreatedAt]
    progress_at: Mapped[datetime | None]
    running: Mapped[Count]
    stalls: Mapped[Count]
    stalled_at: Mapped[datetime | None]
