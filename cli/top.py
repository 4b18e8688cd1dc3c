"""`turnline top`: queues, turns, workers, tools, jobs and cost, live in the terminal."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable
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
from cli.monitor import View, Watch
from settings import Settings

OUTCOMES = ("done", "failed", "dead", "cancelled")
FIRST_WORD_S = 5.0
LATE_S = 60.0


def top(settings: Settings, *, every_s: float, once: bool, as_json: bool) -> None:
    """Show how everything stands, every `every_s` seconds until Ctrl-C, or `once`.

    Raises:
        SetupError: the database does not answer when it begins.
    """
    for name in ("tasks", "store", "celery", "kombu"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what they would say is on the screen already
    watch = Watch(settings, every_s)
    try:
        view = watch.look(wait_s=FIRST_WORD_S if once or as_json else 1.0)
        if as_json:
            click.echo(json.dumps(as_data(view), default=_plain))
        elif once:
            Console().print(shown(view))
        else:
            _live(watch, view, every_s)
    finally:
        watch.close()


def _live(watch: Watch, view: View, every_s: float) -> None:
    with Live(shown(view), screen=True, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(every_s)
                try:
                    view, fault = watch.look(), ""
                except SetupError as error:  # it may come back; what was seen last stays
                    fault = str(error)
                live.update(shown(view, fault), refresh=True)
        except KeyboardInterrupt:
            return


def as_data(view: View) -> dict[str, Any]:
    """The view for a program: what `shown` shows, as values."""
    told = asdict(view)
    told["recent"]["turns_per_second"] = {outcome: told["recent"]["ended"].get(outcome, 0) / 60 for outcome in OUTCOMES}
    return told


def shown(view: View, fault: str = "") -> RenderableType:
    """The view for a person."""
    head = Text.assemble(("turnline top", "bold"), f"  {view.at:%Y-%m-%d %H:%M:%S}Z  ", (fault, "bold red"))
    blocks = [_turns(view), _queues(view), _tools(view)]
    return Group(head, "", Columns([Padding(block, (0, 4, 1, 0)) for block in blocks]), _workers(view), "", _jobs(view))


def _turns(view: View) -> Table:
    table = _table("TURNS", "NOW", "OLDEST")
    for status, told in view.standing.turns.items():
        table.add_row(status, str(told.count), _age(told.oldest_s) if told.count else "")
    table.add_row("behind", "", _age(view.standing.behind_s), style="red" if view.standing.behind_s > LATE_S else "")
    for outcome in OUTCOMES:
        count = view.recent.ended.get(outcome, 0)
        bad = count and outcome in ("failed", "dead")
        table.add_row(f"{outcome} a second", f"{count / 60:.2f}", "", style="red" if bad else "")
    if view.recent.p50_s is not None and view.recent.p95_s is not None:
        table.add_row("took, half / 95 %", f"{view.recent.p50_s:.1f} s", f"{view.recent.p95_s:.1f} s")
    table.add_row("cost an hour", f"${view.recent.usd_per_hour:.4f}", "")
    return table


def _queues(view: View) -> Table:
    table = _table("QUEUES", "WAIT", "OLDEST")
    broker = view.broker
    if broker is None or broker.fault:
        table.add_row(Text(broker.fault if broker else "asking the broker …", style="yellow"), "", "")
        return table
    for name, depth in broker.queues.items():
        table.add_row(name, str(depth.messages), "" if depth.oldest_s is None else _age(depth.oldest_s))
    return table


def _tools(view: View) -> Table:
    table = _table("INTEGRATIONS", "NOW")
    styles = {"degraded": "yellow", "unhealthy": "red"}
    for status, count in view.standing.integrations.items():
        table.add_row(status, str(count), style=styles.get(status, "") if count else "")
    for state, count in view.standing.leases.items():
        table.add_row(f"leases {state.replace('_', ' ')}", str(count), style="red" if state == "run_out" and count else "")
    if view.standing.violations is not None:
        table.add_row("audit violations", str(view.standing.violations), style="red" if view.standing.violations else "")
    return table


def _workers(view: View) -> Table:
    table = _table("WORKER", "RUNNING", "QUEUED", "LIMIT", "LOOP LAG", "SEEN", "PROGRESS", "STALLS")
    rows = {row["name"]: row for row in view.workers}
    pools = view.broker.pools if view.broker else {}
    for name in sorted(rows.keys() | pools.keys()):
        row, pool = rows.get(name, {}), pools.get(name, {})
        lag = pool.get("loop-lag-ms-worst-30s")
        table.add_row(
            name,
            str(pool.get("running", row.get("running", ""))),
            str(pool.get("queued", "")),
            str(pool.get("max-concurrency", "")),
            "" if lag is None else f"{lag:.0f} ms",
            _since(view.at, row.get("seen_at")),
            _since(view.at, row.get("progress_at")),
            str(row.get("stalls") or ""),
        )
    return table


def _jobs(view: View) -> Table:
    table = _table("JOB", "LAST GOOD RUN", "TOOK", "LAST BAD RUN")
    now = view.at.timestamp()
    for job, told in view.standing.jobs.items():
        good = "never" if told.succeeded_at is None else f"{_age(now - told.succeeded_at)} ago"
        bad = "" if told.failed_at is None else f"{_age(now - told.failed_at)} ago"
        failing = told.failed_at is not None and told.failed_at > (told.succeeded_at or 0)
        table.add_row(job, good, "" if told.seconds is None else f"{told.seconds:.1f} s", bad, style="red" if failing else "")
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=number > 0)
    return table


def _since(now: datetime, then: datetime | None) -> str:
    return "" if then is None else _age((now - then).total_seconds())


def _age(seconds: float) -> str:
    seconds = max(0.0, seconds)
    steps: Iterable[tuple[float, str]] = ((86_400, "d"), (3600, "h"), (60, "min"))
    for size, unit in steps:
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _plain(value: object) -> Any:
    return float(value) if isinstance(value, Decimal) else str(value)
