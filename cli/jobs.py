"""`turnline jobs`: list scheduled jobs and their runs, and run one now."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import click
from rich.console import Console

from beat_schedule import SCHEDULE
from cli.database import operator, run_maintenance_query
from cli.errors import SetupError
from cli.options import json_option, limit_option, require_settings
from cli.output import format_duration, join_counts, plain_table, print_json, progress_bar
from settings import Settings
from store.operations import job_runs
from tasks import jobs as task_jobs
from tasks.celery_app import make_app

STATE_COLOURS = {"done": "green", "running": "cyan", "failed": "red", "cut off": "red"}


@click.group()
def jobs() -> None:
    """List scheduled jobs and their runs, or run one now."""


@jobs.command("list")
@json_option()
def list_jobs(as_json: bool) -> None:
    """List every job with its interval and its last run."""
    known = task_jobs.all_jobs()
    last = run_maintenance_query(require_settings(broker=False), lambda database: job_runs.last_of_each(database, list(known)))
    if as_json:
        listed = [
            {"name": job.name, "summary": job.summary, "every_s": interval_s(job.name), "last_run": last.get(job.name)}
            for job in known.values()
        ]
        print_json({"jobs": listed})
        return
    table = plain_table("JOB", "EVERY", "LAST RUN", "TOOK", "RESULT", "SUMMARY")
    for job in known.values():
        run = last.get(job.name)
        cells = ("never", "", "") if run is None else (f"{_state(run)}, {_ago(run)}", format_duration(run["seconds"]), _result(run))
        every_s = interval_s(job.name)
        table.add_row(job.name, "by hand only" if every_s is None else format_duration(every_s), *cells, job.summary)
    Console().print(table)


@jobs.command("runs")
@click.argument("name", required=False)
@click.option("--failed", is_flag=True, help="Only runs that failed or were cut off.")
@limit_option
@json_option()
def list_runs(name: str | None, failed: bool, limit: int, as_json: bool) -> None:
    """List the latest runs, of the job NAME or of all jobs."""
    if name is not None:
        _job(name)
    settings = require_settings(broker=False)
    rows = run_maintenance_query(settings, lambda database: job_runs.latest(database, name, only_bad=failed, limit=limit))
    if as_json:
        print_json({"runs": rows})
        return
    if not rows:
        Console().print("There are no such runs.")
        return
    table = plain_table("RUN", "JOB", "STARTED", "TOOK", "BY", "STATE", "RESULT")
    for row in rows:
        by = row["asked_by"] + (", dry run" if row["dry_run"] else "")
        started = f"{row['started_at'].astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
        table.add_row(str(row["id"]), row["job"], started, format_duration(row["seconds"]), by, _state(row), row["error"] or _result(row))
    Console().print(table)


@jobs.command("run")
@click.argument("name")
@click.option("--dry-run", is_flag=True, help="Change nothing; count the work that would be done.")
@json_option()
def run(name: str, dry_run: bool, as_json: bool) -> None:
    """Run the job NAME here and now.

    The scheduler continues independently: every job tolerates concurrent runs. The run is recorded, as every run is.

    \b
    Example:
      turnline jobs run retention.clean_up --dry-run
    """
    settings = require_settings(broker=False)
    run_id, counts = run_job(settings, name, dry_run=dry_run, show_progress=sys.stderr.isatty() and not as_json)
    if as_json:
        print_json({"run_id": run_id, "job": name, "dry_run": dry_run, "counts": counts})
    else:
        click.echo(f"{name}: {'would have done' if dry_run else 'done'}: {join_counts(counts, 'nothing to do')}.")


def run_job(settings: Settings, name: str, *, dry_run: bool, show_progress: bool) -> tuple[UUID, dict[str, int]]:
    """Run a job and return the run's id and counts.

    Raises:
        SetupError: there is no such job, the database does not answer, the broker is needed and not set, or the run failed.
    """
    job = _job(name)
    run_maintenance_query(settings, lambda database: job_runs.latest(database, limit=1))  # fails with a sentence, unlike the job
    if job.needs_broker and not settings.broker_url:
        raise SetupError(
            f"CELERY_BROKER_URL is not set, and {name} dispatches turns. Set it in the environment, or run `turnline up` here once."
        )
    celery = make_app(settings)

    async def execute() -> tuple[UUID, dict[str, int]]:
        with progress_bar(name, shown=show_progress) as on_progress:
            return await task_jobs.run(job, settings=settings, celery=celery, asked_by=operator(), dry_run=dry_run, on_progress=on_progress)

    try:
        return asyncio.run(execute())
    except task_jobs.JobFailed as error:
        raise SetupError(f"The run failed: {error}. Its completed work is kept; run the job again to continue.") from error
    finally:
        celery.close()


def interval_s(name: str) -> float | None:
    """Return the interval of a scheduled job in seconds, or None if it is not scheduled."""
    return min((float(str(entry["schedule"])) for entry in SCHEDULE.values() if entry["task"] == name), default=None)


def _job(name: str) -> task_jobs.Job:
    known = task_jobs.all_jobs()
    if name not in known:
        raise SetupError(f"There is no job {name!r}. The jobs are: {', '.join(known)}.")
    return known[name]


def _state(row: dict[str, Any]) -> str:
    return f"[{STATE_COLOURS[row['state']]}]{row['state']}[/]"


def _ago(row: dict[str, Any]) -> str:
    return f"{format_duration((datetime.now(UTC) - row['started_at']).total_seconds())} ago"


def _result(row: dict[str, Any]) -> str:
    return join_counts(row["counts"], "nothing to do") if row["error"] is None else row["error"]
