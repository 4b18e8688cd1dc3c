"""Rollups: facts added up by quarter of an hour, by day and in total."""

from __future__ import annotations

from store.analytics import rollups
from tasks.jobs import JobRun, scheduled_job


@scheduled_job("analytics.roll_up", "Adds queued facts to the rollups: each once, whenever it was committed.")
async def roll_up(run: JobRun) -> None:
    """Add the queued facts, note sessions older than the rollups, and rebuild days whose time zone has changed.

    Any number of runs at a time give the same sums.
    """
    if run.dry_run:
        run.count(**await rollups.to_come(run.database))
        return
    await add_queued(run)
    total = (await rollups.to_come(run.database))["sessions"]
    done = 0
    while noted := await rollups.note_older_sessions(run.database):
        done += noted
        run.count(older_sessions=noted)
        run.progress(done, total)
        await add_queued(run)
    run.count(agents_with_new_days=await rollups.cut_days_anew(run.database))


async def add_queued(run: JobRun) -> None:
    """Add the queued facts to the rollups."""
    before = run.counts["facts"]
    queued = (await rollups.to_come(run.database))["facts"]
    facts, sums = await rollups.add(run.database, facts_so_far=lambda done: run.progress(before + done, before + queued))
    run.count(facts=facts, sums=sums)
