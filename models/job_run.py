"""What a scheduled job did, run by run, for operators; of no tenant."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Index, text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, CreatedAt, Id, JsonObject


class JobRunRow(Base):
    """One run of the job `job`, which is the name of its task. `asked_by`: "schedule", or the person who ran it by hand.

    `seen_at` moves on while the run makes progress; one that stays without `finished_at` was killed. `counts`: what it did, by name.
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
