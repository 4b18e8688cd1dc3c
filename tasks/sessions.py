"""Abandoning of idle sessions."""

from __future__ import annotations

from store.conversations import expiry
from tasks.jobs import JobRun, scheduled_job


@scheduled_job("sessions.abandon_idle", "Marks sessions in which nothing has happened for long as abandoned.")
async def abandon_idle(run: JobRun) -> None:
    """Mark idle sessions as abandoned; with `dry_run`, count them."""
    idle_s = run.settings.abandon_after_s
    if not idle_s:
        return
    seen = 0
    async for looked_at, found in expiry.idle(run.database, idle_s):
        run.count(sessions_abandoned=len(found) if run.dry_run else await expiry.abandon(run.database, found, idle_s))
        seen += looked_at
        run.progress(seen, None)
