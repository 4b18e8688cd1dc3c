"""What time does to sessions, on a schedule: they are given up, their approvals expire, and in the end they are deleted."""

from __future__ import annotations

from store.conversations import expiry
from store.retention import cleanup
from tasks.celery_app import app
from tasks.jobs import Work, job, scheduled


@job("retention.clean_up", "Deletes the sessions whose retention is over, with everything of theirs.")
async def CLEAN_UP(work: Work) -> None:
    """Delete in small batches; with `dry_run`, count what there is to delete."""
    sessions, events = await cleanup.due(work.database)
    if work.dry_run:
        work.count(sessions_deleted=sessions, events_deleted=events)
        return
    done = 0

    def on_batch(counts: dict[str, int]) -> None:
        nonlocal done
        work.count(**{f"{kind}_deleted": count for kind, count in counts.items()})
        done += counts["events"]
        work.progress(done, events)

    await cleanup.clean_up(work.database, max_s=work.settings.retention_max_s, on_batch=on_batch)


@app.task(name="retention.clean_up", queue="maintenance", ignore_result=True)
async def clean_up() -> None:
    """Delete what has outlived its retention. Several at a time share the work."""
    await scheduled(CLEAN_UP)


@job("sessions.abandon_idle", "Gives up the sessions in which nothing has happened for long.")
async def ABANDON_IDLE(work: Work) -> None:
    """Mark as abandoned; with `dry_run`, count."""
    idle_s = work.settings.abandon_after_s
    if not idle_s:
        return
    seen = 0
    async for looked_at, found in expiry.idle(work.database, idle_s):
        work.count(sessions_abandoned=len(found) if work.dry_run else await expiry.abandon(work.database, found, idle_s))
        seen += looked_at
        work.progress(seen, None)


@app.task(name="sessions.abandon_idle", queue="maintenance", ignore_result=True)
async def abandon_idle() -> None:
    """Give up idle sessions."""
    await scheduled(ABANDON_IDLE)


@job("approvals.expire", "Lets approvals expire where no turn does it: in paused and quarantined sessions.")
async def EXPIRE_APPROVALS(work: Work) -> None:
    """Expire what is overdue; with `dry_run`, count the sessions concerned."""
    async for page in expiry.with_late_approvals(work.database):
        if work.dry_run:
            work.count(sessions=len(page))
        else:
            work.count(approvals_expired=await expiry.expire(work.database, page))


@app.task(name="approvals.expire", queue="maintenance", ignore_result=True)
async def expire_approvals() -> None:
    """Let overdue approvals expire."""
    await scheduled(EXPIRE_APPROVALS)
