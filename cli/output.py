"""Output that several commands share: JSON, plain tables and a progress bar."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

OnProgress = Callable[[int, int | None], None]
"""Called with the number of items done, and the total or None if it is unknown."""


def print_line(line: str) -> None:
    """Print a line and flush it, so that it appears at once in a pipe, too."""
    click.echo(line)
    sys.stdout.flush()


def print_json(value: object) -> None:
    """Print `value` as one JSON object. Times are in ISO 8601; ids and the like are strings."""
    click.echo(json.dumps(value, default=lambda one: one.isoformat() if isinstance(one, datetime) else str(one), ensure_ascii=False))


def plain_table(*columns: str) -> Table:
    """Return a table without borders, with bold column titles."""
    return Table(*columns, box=None, pad_edge=False, header_style="bold")


def join_counts(counts: Mapping[str, int], nothing: str) -> str:
    """Return counts as words, "3 sessions, 12 tool calls", without zeros; `nothing` if all are zero."""
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items() if count) or nothing


def format_duration(seconds: float) -> str:
    """Return a duration in one unit: "2.5 s", "90 min", "3 d". A negative one counts as 0."""
    seconds = max(0.0, seconds)
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size or seconds == size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 and seconds % 1 else f"{seconds:.0f} s"


@contextmanager
def progress_bar(label: str, *, shown: bool) -> Iterator[OnProgress]:
    """Show a progress bar on standard error while the block runs, and yield the function that updates it."""
    if not shown:
        yield lambda done, total: None
        return
    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        bar = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=None if total is None else max(done, total))
