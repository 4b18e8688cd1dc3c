"""Sweeping up turns that nobody carries."""

from __future__ import annotations

import asyncio
import logging

from settings import get_settings
from store.conversations import sweep
from store.database import MAINTENANCE_ROLE, Database
from tasks.celery_app import app
from tasks.dispatcher import publish
from tasks.jobs import Work, job, scheduled
from worker.lifespan import on_loop_start

log = logging.getLogger(__name__)


@job("turns.sweep", "Rings the turns that nobody carries: a ring was lost, a worker died, a wait is over.", rings=True, alone=False)
async def SWEEP(work: Work) -> None:
    """Ring what is due; with `dry_run`, count it."""
    stale_s, window = work.settings.ring_stale_s, work.settings.workspace_in_flight
    if work.dry_run:
        work.count(rung=await sweep.how_many_are_due(work.database, stale_s=stale_s, window=window))
        return
    due = await sweep.due(work.database, stale_s=stale_s, window=window)
    if due:
        await asyncio.to_thread(publish, work.celery or app, due)
        work.count(rung=len(due))


@app.task(name="turns.sweep", queue="maintenance", ignore_result=True)
async def sweep_turns() -> None:
    """Ring the turns that nobody carries. Zero, one or three of these at a time change nothing but how soon."""
    await scheduled(SWEEP)


@on_loop_start
async def ring_what_is_due() -> None:
    """Ring the turns that nobody carries as a worker starts; a database or broker that is away is left to the schedule."""
    settings = get_settings()
    maintenance = Database(
        settings.maintenance_database_url or settings.database_url, role=MAINTENANCE_ROLE, pool_size=1, application_name="turnline-sweep"
    )
    await maintenance.open()
    try:
        await SWEEP.work(Work(maintenance, settings))
    except Exception as error:  # noqa: BLE001 - the schedule's next run, or another worker, rings them
        log.warning("the sweep could not be done: %s", type(error).__name__)
    finally:
        await maintenance.close()
