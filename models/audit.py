"""What operators look at, of no tenant: how audits of the books ended, and when each worker last got on with its work."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Count, CreatedAt, Id, JsonObject


class AuditRow(Base):
    """One run of `turnline audit`. `finished_at` is null while it runs, and stays null where it was killed.

    `checked`: how many sessions, turns, events and calls were looked at. `violations`: name -> {"count", "ids"}, a few ids of each.
    `since`: sessions active from then on were all looked at, where `complete`; of the older ones, those after the `older_after` of the
    audit before up to this one's (null: to the last).
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

    `progress_at` is when it last heard from the broker, received a task or finished one. `stalls` counts how often a worker of this
    name was ended because it made no progress while there was work.
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
