"""Running turns, and the sweep that finds turns which should be running and are not."""

from __future__ import annotations

import asyncio
import logging
from uuid import UUID

from structlog.contextvars import bound_contextvars

from failpoints import failpoint
from settings import get_settings
from store.conversations import sweep
from store.database import MAINTENANCE_ROLE, Database
from tasks.celery_app import app
from tasks.dispatcher import publish
from tasks.jobs import JobRun, scheduled_job
from worker.lifespan import on_loop_start
from worker.resources import acquire
from worker.turn_runner import run_turn

log = logging.getLogger(__name__)


@app.task(name="turns.advance", queue="turns")
async def advance_turn(turn_id: str) -> None:
    """Run one turn to its next outcome. Safe to run twice, late, or with an unknown id."""
    try:
        parsed = UUID(turn_id)
    except (ValueError, AttributeError, TypeError):
        log.warning("Ignoring dispatch message: invalid turn id")
        return
    async with acquire() as resources:
        with bound_contextvars(turn_id=turn_id):
            failpoint("worker.message_received")
            if await run_turn(resources, parsed) is not None:
                failpoint("worker.before_ack")


@scheduled_job(
    "turns.sweep",
    "Dispatches the turns that should be running and are not: a dispatch was lost, a worker died, a wait is over.",
    needs_broker=True,
    alone=False,
)
async def sweep_turns(run: JobRun) -> None:
    """Dispatch the turns that are due; with `dry_run`, count them. Any number of runs at a time dispatch each once."""
    stale_s, in_flight_limit = run.settings.ring_stale_s, run.settings.workspace_in_flight
    if run.dry_run:
        run.count(turns_dispatched=await sweep.how_many_are_due(run.database, stale_s=stale_s, in_flight_limit=in_flight_limit))
        return
    due = await sweep.due(run.database, stale_s=stale_s, in_flight_limit=in_flight_limit)
    if due:
        await asyncio.to_thread(publish, run.celery or app, due)
        run.count(turns_dispatched=len(due))


@on_loop_start
async def sweep_at_start() -> None:
    """Sweep once when a worker starts. If the database or the broker is down, the scheduled sweep dispatches the turns later."""
    settings = get_settings()
    maintenance = Database(
        settings.maintenance_database_url or settings.database_url, role=MAINTENANCE_ROLE, pool_size=1, application_name="turnline-sweep"
    )
    await maintenance.open()
    try:
        await sweep_turns.body(JobRun(maintenance, settings))
    except Exception as error:  # noqa: BLE001 - the scheduled sweep, or another worker, dispatches the turns
        log.warning("The sweep at start failed: %s", type(error).__name__)
    finally:
        await maintenance.close()
