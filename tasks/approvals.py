"""Expiry of approvals."""

from __future__ import annotations

from store.conversations import expiry
from tasks.jobs import JobRun, scheduled_job


@scheduled_job("approvals.expire", "Expires overdue approvals whose turn cannot do it: in paused and quarantined sessions.")
async def expire(run: JobRun) -> None:
    """Expire overdue approvals; with `dry_run`, count the sessions concerned."""
    async for page in expiry.with_late_approvals(run.database):
        if run.dry_run:
            run.count(sessions=len(page))
        else:
            run.count(approvals_expired=await expiry.expire(run.database, page))
