"""Scheduled jobs. Each is a function of a `JobRun`; every run leaves a row in `job_runs`, by schedule or by hand.

`@scheduled_job(name, summary)` turns the function into a `Job` and creates the Celery task of the same name. Every job may run twice,
overlap with another run of itself, be killed anywhere and not run for an hour: it decides what to do from the rows it finds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from celery import Celery

from engine.errors import Rejected
from observability import metrics
from settings import Settings, get_settings
from store.database import MAINTENANCE_ROLE, Database
from store.operations import job_runs
from tasks.celery_app import app

log = logging.getLogger(__name__)

SEEN_EVERY_S = 5.0
CONNECTIONS = 4

Progress = Callable[[int, int | None], None]
"""Called with how much is done, and of how much (None: unknown)."""


@dataclass(slots=True)
class JobRun:
    """One run of a job: its database (as turnline_maintenance), the settings, and the counts of what it did.

    With `dry_run` the job changes nothing and counts what it would do. `by_hand`: an operator waits for it, and no schedule continues
    where it stops.
    """

    database: Database
    settings: Settings
    dry_run: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    on_progress: Progress = lambda done, total: None
    celery: Celery | None = None  # the app to publish with, if not this process's own
    by_hand: bool = False

    def count(self, **amounts: int) -> None:
        """Add to the counts. Operators see them by these names, with spaces for underscores."""
        self.counts.update(amounts)

    def progress(self, done: int, total: int | None = None) -> None:
        """Report how far the run is."""
        self.on_progress(done, total)


Body = Callable[[JobRun], Awaitable[None]]
SkipWhen = Callable[..., Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Job:
    """A job. `name` is also its task's; `summary` is a sentence for operators; `needs_broker`: it publishes messages.

    `alone`: a scheduled run is skipped while another run is under way, so that copies do not fill the maintenance worker.
    """

    name: str
    summary: str
    body: Body
    needs_broker: bool = False
    alone: bool = True


class JobFailed(Exception):
    """A run failed; its row and the log say why."""


class UnderWay(Exception):
    """Another run of the job is under way."""


JOBS: dict[str, Job] = {}


def manual_job(name: str, summary: str, *, needs_broker: bool = False, alone: bool = True) -> Callable[[Body], Job]:
    """Turn the decorated function into a job that only runs by hand (`turnline jobs run NAME`)."""

    def register(body: Body) -> Job:
        job = JOBS[name] = Job(name, summary, body, needs_broker, alone)
        return job

    return register


def scheduled_job(
    name: str, summary: str, *, needs_broker: bool = False, alone: bool = True, skip_when: SkipWhen | None = None
) -> Callable[[Body], Job]:
    """Turn the decorated function into a job, and create the Celery task `name` that runs it.

    `skip_when` is called with the task's arguments; the run is skipped if it returns True.
    """

    def register(body: Body) -> Job:
        job = manual_job(name, summary, needs_broker=needs_broker, alone=alone)(body)
        _create_task(job, skip_when)
        return job

    return register


def _create_task(job: Job, skip_when: SkipWhen | None) -> None:
    async def run_task(*args: Any, **kwargs: Any) -> None:
        if skip_when is None or not await skip_when(*args, **kwargs):
            await run_scheduled(job)

    async def run_task_without_arguments() -> None:
        await run_scheduled(job)

    task = run_task_without_arguments if skip_when is None else run_task
    task.__doc__, task.__module__ = job.body.__doc__, job.body.__module__
    app.task(name=job.name, queue="maintenance", ignore_result=True)(task)


def all_jobs() -> dict[str, Job]:
    """Return every job by name, after loading all task modules."""
    app.loader.import_default_modules()
    return dict(sorted(JOBS.items()))


async def run(
    job: Job,
    *,
    settings: Settings,
    celery: Celery | None = None,
    asked_by: str = "schedule",
    dry_run: bool = False,
    on_progress: Progress | None = None,
) -> tuple[UUID, dict[str, int]]:
    """Run `job` to its end and record the run; return the id of its row and its counts.

    `celery`: the app to publish with, if not this process's own.

    Raises:
        JobFailed: the run failed. What it had done stays done, and the next run continues from there.
        UnderWay: the schedule asked for it while another run was under way.
    """
    url = settings.maintenance_database_url or settings.database_url
    database = Database(url, role=MAINTENANCE_ROLE, pool_size=CONNECTIONS, application_name=f"turnline-{job.name}")
    job_run = JobRun(
        database, settings, dry_run, on_progress=on_progress or (lambda done, total: None), celery=celery, by_hand=asked_by != "schedule"
    )
    run_id: UUID | None = None
    await database.open()
    try:
        run_id = await _begin(database, job, asked_by, dry_run)
        async with _reported_as_alive(job_run, run_id):
            await job.body(job_run)
        await job_runs.finish(database, run_id, job_run.counts, None)
        metrics.job_ran(job.name, "done", {} if dry_run else job_run.counts)
    except UnderWay:
        raise
    except Exception as error:  # noqa: BLE001 - any failure is recorded in the row
        # The text of a Rejected is ours; the text of any other error may quote a customer.
        reason = str(error).rstrip(".") if isinstance(error, Rejected) else f"{type(error).__name__} at {_where(error)}"
        metrics.job_ran(job.name, "failed", {} if dry_run else job_run.counts)
        log.error("Job failed", extra={"job": job.name, "error": reason, **job_run.counts})  # noqa: TRY400 - a traceback may quote data
        if run_id is not None:
            with contextlib.suppress(Exception):  # the database may be what failed
                await job_runs.finish(database, run_id, job_run.counts, reason)
        raise JobFailed(f"{job.name}: {reason}") from None
    finally:
        await database.close()
    return run_id, dict(job_run.counts)


async def run_scheduled(job: Job) -> None:
    """Run `job` as its Celery task does; skip it while another run is under way.

    Raises:
        JobFailed: the run failed; the task is shown as failed.
    """
    began = time.monotonic()
    try:
        _, counts = await run(job, settings=get_settings())
    except UnderWay:
        log.info("Skipping job: another run is under way", extra={"job": job.name})
        return
    if any(counts.values()):
        log.info("Job finished", extra={"job": job.name, "seconds": round(time.monotonic() - began, 2), **counts})


async def _begin(database: Database, job: Job, asked_by: str, dry_run: bool) -> UUID:
    alone = job.alone and asked_by == "schedule"
    run_id = await job_runs.begin(database, job.name, asked_by=asked_by, dry_run=dry_run, alone=alone)
    if run_id is None:
        raise UnderWay
    return run_id


@contextlib.asynccontextmanager
async def _reported_as_alive(job_run: JobRun, run_id: UUID) -> AsyncIterator[None]:
    """Write the counts and the time into the run's row every few seconds during the block."""

    async def report() -> None:
        while True:
            await asyncio.sleep(SEEN_EVERY_S)
            with contextlib.suppress(Exception):  # if the database is down, the job itself fails
                await job_runs.seen(job_run.database, run_id, job_run.counts)

    reporting = asyncio.create_task(report())
    try:
        yield
    finally:
        reporting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reporting


def _where(error: BaseException) -> str:
    """Return file, line and function of our innermost frame."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
    return f"{frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno} in {frames[-1].name}" if frames else "an unknown place"
