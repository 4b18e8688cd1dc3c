"""Runs of scheduled jobs, for operators. The rows belong to no workspace."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Index, text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, CreatedAt, Id, JsonObject


class JobRunRow(Base):
    """One run of the job `job`, which is the name of its task. `asked_by`: "schedule", or the person who ran it by hand.

    `seen_at` is updated while the run makes progress; a run that stays without `finished_at` was killed. `counts`: its results by name.
    """

    __tablename__ = "job_runs"
    __table_args__ = (Index(None, "job", "id"),)
    id: Mapped[Id]
    job: Mapped[str]
    asked_by: Mapped[str]
    dry_run: Mapped[bool] = mapped_column(server_default=text("false"))
    started_at: Mapped[CreatedAt]
    seen_at: Mapped[CreatedAt]
    finished_at: Mapped[datetime | None]
    counts: Mapped[JsonObject]
    error: Mapped[str | None]
