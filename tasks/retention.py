"""Deletion of sessions whose retention is over."""

from __future__ import annotations

from store.retention import cleanup
from tasks.jobs import JobRun, scheduled_job


@scheduled_job("retention.clean_up", "Deletes the sessions whose retention is over, with everything of theirs.")
async def clean_up(run: JobRun) -> None:
    """Delete in small batches; with `dry_run`, count what would be deleted. Several runs at a time share the work."""
    sessions, events = await cleanup.due(run.database)
    if run.dry_run:
        run.count(sessions_deleted=sessions, events_deleted=events)
        return
    done = 0

    def on_batch(counts: dict[str, int]) -> None:
        nonlocal done
        run.count(**{f"{kind}_deleted": count for kind, count in counts.items()})
        done += counts["events"]
        run.progress(done, events)

    await cleanup.clean_up(run.database, max_s=run.settings.retention_max_s, on_batch=on_batch)
