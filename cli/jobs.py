"""`turnline jobs`: what is done on a schedule, what came of it, and doing it now."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from beat_schedule import SCHEDULE
from cli.database import operator, run_query
from cli.errors import SetupError
from settings import Settings
from store.database import MAINTENANCE_ROLE, Database
from store.operations import job_runs
from tasks import jobs
from tasks.celery_app import make_app

STATES = {"done": "green", "running": "cyan", "failed": "red", "cut off": "red"}


def list_jobs(settings: Settings, *, as_json: bool) -> None:
    """Print every job: what it does, how often, how its last run ended.

    Raises:
        SetupError: the database does not answer or was not migrated.
    """
    known = jobs.all_jobs()
    last = _as_maintenance(settings, lambda database: job_runs.last_of_each(database, list(known)))
    if as_json:
        listed = [
            {"name": one.name, "summary": one.summary, "every_s": every_s(one.name), "last_run": last.get(one.name)}
            for one in known.values()
        ]
        _print_json({"jobs": listed})
        return
    table = Table("JOB", "EVERY", "LAST RUN", "TOOK", "DID", "WHAT IT IS", box=None, pad_edge=False, header_style="bold")
    for one in known.values():
        run = last.get(one.name)
        ran = ("never", "", "") if run is None else (_state(run), _seconds(run["seconds"]), _did(run))
        table.add_row(one.name, _every(every_s(one.name)), *ran, one.summary)
    Console().print(table)


def list_runs(settings: Settings, name: str | None, *, only_bad: bool, limit: int, as_json: bool) -> None:
    """Print the latest runs, of one job or of all.

    Raises:
        SetupError: there is no such job, or the database does not answer.
    """
    if name is not None:
        _known(name)
    rows = _as_maintenance(settings, lambda database: job_runs.latest(database, name, only_bad=only_bad, limit=limit))
    if as_json:
        _print_json({"runs": rows})
        return
    if not rows:
        Console().print("There are no such runs.")
        return
    table = Table("RUN", "JOB", "STARTED", "TOOK", "BY", "STATE", "DID", box=None, pad_edge=False, header_style="bold")
    for row in rows:
        by = row["asked_by"] + (", dry run" if row["dry_run"] else "")
        started = f"{row['started_at'].astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
        table.add_row(str(row["id"]), row["job"], started, _seconds(row["seconds"]), by, _state(row, when=False), row["error"] or _did(row))
    Console().print(table)


def run_job(settings: Settings, name: str, *, dry_run: bool, as_json: bool) -> None:
    """Run a job here and now, and print what it did.

    Raises:
        SetupError: there is no such job, the database does not answer, or the run did not come to its end.
    """
    wanted = _known(name)
    _as_maintenance(settings, lambda database: job_runs.latest(database, limit=1))  # whether it answers, said in a sentence

    async def carry_out() -> tuple[UUID, dict[str, int]]:
        with _bar(name, shown=sys.stderr.isatty() and not as_json) as on_progress:
            return await jobs.run(wanted, settings=settings, celery=celery, asked_by=operator(), dry_run=dry_run, on_progress=on_progress)

    if wanted.rings and not settings.broker_url:
        raise SetupError(f"CELERY_BROKER_URL is not set, and {name} rings. Set it in the environment, or start `turnline up` here once.")
    celery = make_app(settings)
    try:
        run_id, counts = asyncio.run(carry_out())
    except jobs.JobFailed as error:
        raise SetupError(f"The run did not come to its end: {error}. What it had done stays done; run it again to go on.") from error
    finally:
        celery.close()
    if as_json:
        _print_json({"run_id": run_id, "job": name, "dry_run": dry_run, "counts": counts})
    else:
        click.echo(f"{name}: {'would have done' if dry_run else 'done'}: {words(counts)}.")


def every_s(name: str) -> float | None:
    """How often a job is scheduled, in seconds; None where it is not."""
    cadences = [float(str(entry["schedule"])) for entry in SCHEDULE.values() if entry["task"] == name]
    return min(cadences, default=None)


def words(counts: Mapping[str, int]) -> str:
    """Counts as words: "3 sessions deleted, 12 events deleted"."""
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items() if count) or "nothing to do"


def _known(name: str) -> jobs.Job:
    known = jobs.all_jobs()
    if name not in known:
        raise SetupError(f"There is no job {name!r}. There are: {', '.join(known)}.")
    return known[name]


def _as_maintenance(settings: Settings, ask: Any) -> Any:
    def passed(database: Database) -> Any:
        return ask(database)

    return run_query(settings.maintenance_database_url or settings.database_url, passed, role=MAINTENANCE_ROLE)


def _state(row: dict[str, Any], *, when: bool = True) -> str:
    since = f", {_seconds((datetime.now(UTC) - row['started_at']).total_seconds())} ago" if when else ""
    return f"[{STATES[row['state']]}]{row['state']}[/]{since}"


def _did(row: dict[str, Any]) -> str:
    return words(row["counts"]) if row["error"] is None else row["error"]


def _every(seconds: float | None) -> str:
    return "by hand only" if seconds is None else _seconds(seconds)


def _seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 and seconds % 1 else f"{seconds:.0f} s"
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    raise AssertionError(seconds)


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, default=lambda one: one.isoformat() if isinstance(one, datetime) else str(one), ensure_ascii=False))


@contextmanager
def _bar(name: str, *, shown: bool) -> Iterator[jobs.Progress]:
    if not shown:
        yield lambda done, total: None
        return
    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        bar = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=None if total is None else max(done, total))
