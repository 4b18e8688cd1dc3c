"""`turnline top`: queues, turns, workers, tools, jobs and cost, live in the terminal."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict
from datetime import datetime
from decimal import Decimal
from typing import Any

import click
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cli.errors import SetupError
from cli.monitor import Monitor, Snapshot
from cli.options import json_option, require_settings
from cli.output import format_duration

OUTCOMES = ("done", "failed", "dead", "cancelled")
BROKER_TIMEOUT_S = 5.0
LATE_S = 60.0


@click.command()
@click.option(
    "--every",
    "interval_s",
    metavar="SECONDS",
    type=click.FloatRange(0.5, 60),
    default=2.0,
    show_default=True,
    help="Time between updates.",
)
@click.option("--once", is_flag=True, help="Print the current state and exit.")
@json_option("Print the current state as one JSON object and exit.")
def top(interval_s: float, once: bool, as_json: bool) -> None:
    """Show queues, turns, workers, tools, jobs and cost, live.

    Ctrl-C ends it. Needs DATABASE_URL; without a broker it shows only what the database knows.
    """
    settings = require_settings(broker=False)
    for name in ("tasks", "store", "celery", "kombu"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the display shows faults; log lines would break it
    monitor = Monitor(settings, interval_s)
    try:
        snapshot = monitor.snapshot(broker_timeout_s=BROKER_TIMEOUT_S if once or as_json else 1.0)
        if as_json:
            click.echo(json.dumps(as_data(snapshot), default=_to_json))
        elif once:
            Console().print(render(snapshot))
        else:
            _run_live(monitor, snapshot, interval_s)
    finally:
        monitor.close()


def _run_live(monitor: Monitor, snapshot: Snapshot, interval_s: float) -> None:
    with Live(render(snapshot), screen=True, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(interval_s)
                try:
                    snapshot, fault = monitor.snapshot(), ""
                except SetupError as error:  # keep showing the last snapshot: the database may come back
                    fault = str(error)
                live.update(render(snapshot, fault), refresh=True)
        except KeyboardInterrupt:
            return


def as_data(snapshot: Snapshot) -> dict[str, Any]:
    """Return the snapshot as plain values, for JSON."""
    values = asdict(snapshot)
    recent = values["activity"]
    recent["turns_per_second"] = {outcome: recent["ended"].get(outcome, 0) / 60 for outcome in OUTCOMES}
    return {"at": values["at"], "standing": values["stats"], "recent": recent, "workers": values["workers"], "broker": values["broker"]}


def render(snapshot: Snapshot, fault: str = "") -> RenderableType:
    """Return the snapshot as text for the terminal."""
    head = Text.assemble(("turnline top", "bold"), f"  {snapshot.at:%Y-%m-%d %H:%M:%S}Z  ", (fault, "bold red"))
    blocks = [_turns(snapshot), _queues(snapshot), _tools(snapshot)]
    return Group(head, "", Columns([Padding(block, (0, 4, 1, 0)) for block in blocks]), _workers(snapshot), "", _jobs(snapshot))


def _turns(snapshot: Snapshot) -> Table:
    stats, recent = snapshot.stats, snapshot.activity
    table = _table("TURNS", "NOW", "OLDEST")
    for status, turns in stats.turns.items():
        table.add_row(status, str(turns.count), format_duration(turns.oldest_s) if turns.count else "")
    table.add_row("waiting for a worker", "", format_duration(stats.behind_s), style="red" if stats.behind_s > LATE_S else "")
    for outcome in OUTCOMES:
        count = recent.ended.get(outcome, 0)
        bad = count and outcome in ("failed", "dead")
        table.add_row(f"{outcome} a second", f"{count / 60:.2f}", "", style="red" if bad else "")
    if recent.p50_s is not None and recent.p95_s is not None:
        table.add_row("duration, p50 / p95", f"{recent.p50_s:.1f} s", f"{recent.p95_s:.1f} s")
    table.add_row("cost an hour", f"${recent.usd_per_hour:.4f}", "")
    return table


def _queues(snapshot: Snapshot) -> Table:
    table = _table("QUEUES", "MESSAGES", "OLDEST")
    broker = snapshot.broker
    if broker is None or broker.fault:
        table.add_row(Text(broker.fault if broker else "connecting to the broker …", style="yellow"), "", "")
        return table
    for name, depth in broker.queues.items():
        table.add_row(name, str(depth.messages), "" if depth.oldest_s is None else format_duration(depth.oldest_s))
    return table


def _tools(snapshot: Snapshot) -> Table:
    stats = snapshot.stats
    table = _table("INTEGRATIONS", "NOW")
    styles = {"degraded": "yellow", "unhealthy": "red"}
    for status, count in stats.integrations.items():
        table.add_row(status, str(count), style=styles.get(status, "") if count else "")
    for state, count in stats.leases.items():
        table.add_row(f"leases {state.replace('_', ' ')}", str(count), style="red" if state == "run_out" and count else "")
    if stats.violations is not None:
        table.add_row("audit violations", str(stats.violations), style="red" if stats.violations else "")
    return table


def _workers(snapshot: Snapshot) -> Table:
    table = _table("WORKER", "RUNNING", "QUEUED", "LIMIT", "LOOP LAG", "SEEN", "PROGRESS", "STALLS")
    rows = {row["name"]: row for row in snapshot.workers}
    pools = snapshot.broker.pools if snapshot.broker else {}
    for name in sorted(rows.keys() | pools.keys()):
        row, pool = rows.get(name, {}), pools.get(name, {})
        lag = pool.get("loop-lag-ms-worst-30s")
        table.add_row(
            name,
            str(pool.get("running", row.get("running", ""))),
            str(pool.get("queued", "")),
            str(pool.get("max-concurrency", "")),
            "" if lag is None else f"{lag:.0f} ms",
            _since(snapshot.at, row.get("seen_at")),
            _since(snapshot.at, row.get("progress_at")),
            str(row.get("stalls") or ""),
        )
    return table


def _jobs(snapshot: Snapshot) -> Table:
    table = _table("JOB", "LAST SUCCESS", "TOOK", "LAST FAILURE")
    now = snapshot.at.timestamp()
    for name, job in snapshot.stats.jobs.items():
        succeeded = "never" if job.succeeded_at is None else f"{format_duration(now - job.succeeded_at)} ago"
        failed = "" if job.failed_at is None else f"{format_duration(now - job.failed_at)} ago"
        failing = job.failed_at is not None and job.failed_at > (job.succeeded_at or 0)
        table.add_row(name, succeeded, "" if job.seconds is None else f"{job.seconds:.1f} s", failed, style="red" if failing else "")
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=number > 0)
    return table


def _since(now: datetime, then: datetime | None) -> str:
    return "" if then is None else format_duration((now - then).total_seconds())


def _to_json(value: object) -> Any:
    return float(value) if isinstance(value, Decimal) else str(value)
