"""Scheduled jobs: what they have in common. Each is a function of a `Work`; its run leaves a row, by schedule or by hand.

A module that has a job makes a `Job`, adds it with `job(…)` and gives it a task of the same name. Every job may run twice, overlap
with another run of itself, die anywhere and stay away for an hour: what it finds in the rows decides what it does.
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
from uuid import UUID

from celery import Celery

from engine.errors import Rejected
from observability import metrics
from settings import Settings, get_settings
from store.database import MAINTENANCE_ROLE, Database
from store.operations import job_runs

log = logging.getLogger(__name__)

SEEN_EVERY_S = 5.0
CONNECTIONS = 4

Progress = Callable[[int, int | None], None]
"""How much is done, and of how much (None: not known)."""


@dataclass(slots=True)
class Work:
    """What a job works with: a database as turnline_maintenance, the settings, the broker, and where it says what it did.

    With `dry_run` it changes nothing and counts what it would do. `by_hand`: somebody waits for it, and no schedule goes on where it stops.
    """

    database: Database
    settings: Settings
    dry_run: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    on_progress: Progress = lambda done, total: None
    celery: Celery | None = None  # where to ring, if not in the process's own app
    by_hand: bool = False

    def count(self, **amounts: int) -> None:
        """Add to what the run has done; shown to operators by these names, with spaces for underscores."""
        self.counts.update(amounts)

    def progress(self, done: int, total: int | None = None) -> None:
        """Say how far it is, for whoever watches."""
        self.on_progress(done, total)


@dataclass(frozen=True, slots=True)
class Job:
    """A scheduled job. `name` is its task's; `summary` says in a sentence what it does; `rings`: it needs the broker.

    `alone`: a run that the schedule asks for leaves it to one that is under way, so that copies do not fill the maintenance worker.
    """

    name: str
    summary: str
    work: Callable[[Work], Awaitable[None]]
    rings: bool = False
    alone: bool = True


JOBS: dict[str, Job] = {}


def job(name: str, summary: str, *, rings: bool = False, alone: bool = True) -> Callable[[Callable[[Work], Awaitable[None]]], Job]:
    """Make the decorated function a job, and list it."""

    def listed(work: Callable[[Work], Awaitable[None]]) -> Job:
        JOBS[name] = Job(name, summary, work, rings, alone)
        return JOBS[name]

    return listed


class JobFailed(Exception):
    """A run did not come to its end; its row and the log say why."""


class UnderWay(Exception):
    """Another run of the job is at work."""


def all_jobs() -> dict[str, Job]:
    """Every job, by name: the modules of the Celery app are loaded first."""
    from tasks.celery_app import app

    app.loader.import_default_modules()
    return dict(sorted(JOBS.items()))


async def run(
    wanted: Job,
    *,
    settings: Settings,
    celery: Celery | None = None,
    asked_by: str = "schedule",
    dry_run: bool = False,
    on_progress: Progress | None = None,
) -> tuple[UUID, dict[str, int]]:
    """Run a job to its end, and keep a row of the run; the row's id and what was done.

    `celery`: where to ring, if not in this process's own app.

    Raises:
        JobFailed: it did not come to its end. What it had done stays done, and the next run goes on from there.
        UnderWay: the schedule asks for it, and another run is at it.
    """
    url = settings.maintenance_database_url or settings.database_url
    database = Database(url, role=MAINTENANCE_ROLE, pool_size=CONNECTIONS, application_name=f"turnline-{wanted.name}")
    told = on_progress or (lambda done, total: None)
    work = Work(database, settings, dry_run, on_progress=told, celery=celery, by_hand=asked_by != "schedule")
    run_id: UUID | None = None
    await database.open()
    try:
        run_id = await _begun(database, wanted, asked_by, dry_run)
        async with _seen(work, run_id):
            await wanted.work(work)
        await job_runs.finish(database, run_id, work.counts, None)
        metrics.job_ran(wanted.name, "done", {} if dry_run else work.counts)
    except UnderWay:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, the row says so
        # A refusal is a sentence of ours; any other error's words may quote a customer's.
        said = str(error).rstrip(".") if isinstance(error, Rejected) else f"{type(error).__name__} at {_where(error)}"
        metrics.job_ran(wanted.name, "failed", {} if dry_run else work.counts)
        log.error("a job failed", extra={"job": wanted.name, "error": said, **work.counts})  # noqa: TRY400 - its words may quote data
        if run_id is not None:
            with contextlib.suppress(Exception):  # the database may be what failed
                await job_runs.finish(database, run_id, work.counts, said)
        raise JobFailed(f"{wanted.name}: {said}") from None
    finally:
        await database.close()
    return run_id, dict(work.counts)


async def _begun(database: Database, wanted: Job, asked_by: str, dry_run: bool) -> UUID:
    alone = wanted.alone and asked_by == "schedule"
    run_id = await job_runs.begin(database, wanted.name, asked_by=asked_by, dry_run=dry_run, alone=alone)
    if run_id is None:
        raise UnderWay
    return run_id


async def scheduled(wanted: Job) -> None:
    """Run a job as its task does; not where another run is at it.

    Raises:
        JobFailed: as `run`; the task shows as failed.
    """
    began = time.monotonic()
    try:
        _, counts = await run(wanted, settings=get_settings())
    except UnderWay:
        log.info("a job was left to the run of it that is under way", extra={"job": wanted.name})
        return
    if any(counts.values()):
        log.info("a job has run", extra={"job": wanted.name, "seconds": round(time.monotonic() - began, 2), **counts})


@contextlib.asynccontextmanager
async def _seen(work: Work, run_id: UUID) -> AsyncIterator[None]:
    async def keep_saying() -> None:
        while True:
            await asyncio.sleep(SEEN_EVERY_S)
            with contextlib.suppress(Exception):  # where the database is away, the job will say so
                await job_runs.seen(work.database, run_id, work.counts)

    saying = asyncio.create_task(keep_saying())
    try:
        yield
    finally:
        saying.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await saying


def _where(error: BaseException) -> str:
    """Our innermost frame of an exception: file, line and function."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
    return f"{frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno} in {frames[-1].name}" if frames else "an unknown place"
