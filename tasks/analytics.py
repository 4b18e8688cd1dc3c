"""Adding up what happened, by quarter of an hour, by day and in total; and what agents and tools came to, in their own rows."""

from __future__ import annotations

from store.analytics import rollups, totals
from tasks.celery_app import app
from tasks.jobs import Work, job, scheduled


@job("analytics.roll_up", "Adds what happened to the rollups: every fact once, whenever it was committed.")
async def ROLL_UP(work: Work) -> None:
    """Add what is queued, note sessions from before there were rollups, cut days anew where a time zone has changed."""
    if work.dry_run:
        work.count(**await rollups.to_come(work.database))
        return
    await _add(work)
    total = (await rollups.to_come(work.database))["sessions"]
    done = 0
    while noted := await rollups.note_older_sessions(work.database):
        done += noted
        work.count(older_sessions=noted)
        work.progress(done, total)
        await _add(work)
    work.count(agents_with_new_days=await rollups.cut_days_anew(work.database))


@job("usage.fold_totals", "Writes what agents and tools came to in all into their rows.")
async def FOLD_TOTALS(work: Work) -> None:
    """Add what is queued and fold the totals that it changed; with `dry_run`, count both."""
    if work.dry_run:
        work.count(facts=(await rollups.to_come(work.database))["facts"], totals=await totals.to_come(work.database))
        return
    await _add(work)
    work.count(**await totals.fold(work.database))


async def _add(work: Work) -> None:
    before = work.counts["facts"]
    waiting = (await rollups.to_come(work.database))["facts"]
    facts, sums = await rollups.add(work.database, facts_so_far=lambda done: work.progress(before + done, before + waiting))
    work.count(facts=facts, sums=sums)


@app.task(name="analytics.roll_up", queue="maintenance", ignore_result=True)
async def roll_up() -> None:
    """Add what happened to the rollups. Zero, one or three of these at a time change nothing but how soon."""
    await scheduled(ROLL_UP)


@app.task(name="usage.fold_totals", queue="maintenance", ignore_result=True)
async def fold_totals() -> None:
    """Write what agents and tools came to in all into their rows. Harmless to run twice, or two at once."""
    await scheduled(FOLD_TOTALS)
