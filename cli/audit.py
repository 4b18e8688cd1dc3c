"""`turnline audit`: whether the books are right, as text or JSON."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cli.database import run_query
from cli.errors import SetupError
from settings import Settings
from store.database import MAINTENANCE_ROLE, Database
from store.operations import audit

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def duration(said: str) -> timedelta:
    """The length of time that `said` ("90s", "15m", "2h", "7d", "1w") names. Raises ValueError."""
    found = re.fullmatch(r"(\d{1,6})([smhdw])", said.strip())
    if found is None:
        raise ValueError(f"{said!r} is no length of time; write it like 90s, 15m, 2h, 7d or 1w")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def beginning(since: str | None, everything: bool) -> datetime | None:
    """From when on sessions were active that are looked at; None: as the audit before left it. Raises ValueError as `duration` does."""
    if everything:
        return audit.BEGINNING
    return datetime.now(UTC) - duration(since) if since else None


def run(settings: Settings, *, since: datetime | None, max_s: float, show_progress: bool) -> dict[str, Any]:
    """Audit, and return the row that was kept of it.

    Raises:
        SetupError: the database does not answer or was not migrated.
    """

    async def ask(database: Database) -> dict[str, Any]:
        with _progress(show_progress) as on_progress:
            report = await audit.run(database, since=since, max_s=max_s, on_progress=on_progress)
        return await audit.row(database, report.id)

    return run_query(settings.maintenance_database_url or settings.database_url, ask, role=MAINTENANCE_ROLE)


def last(settings: Settings) -> dict[str, Any]:
    """The row of the last audit, finished or not.

    Raises:
        SetupError: there has been none, or the database does not answer.
    """

    async def ask(database: Database) -> list[dict[str, Any]]:
        return await audit.latest(database)

    rows = run_query(settings.maintenance_database_url or settings.database_url, ask, role=MAINTENANCE_ROLE)
    if not rows:
        raise SetupError("There has been no audit yet. `turnline audit` makes one; the scheduler does every day.")
    return rows[0]


def exit_code(row: dict[str, Any]) -> int:
    """0 without violations, 1 with some, 2 where the audit did not come to its end."""
    if row["finished_at"] is None or row["error"]:
        return 2
    return 1 if row["violations"] else 0


def as_json(row: dict[str, Any]) -> str:
    """The row as one JSON object; times in ISO 8601."""
    return json.dumps(row, default=lambda value: value.isoformat() if isinstance(value, datetime) else str(value), ensure_ascii=False)


def as_text(row: dict[str, Any], limit: int) -> str:
    """The row for a person, with at most `limit` ids of each violation."""
    return "\n".join(_lines(row, limit))


def _lines(row: dict[str, Any], limit: int) -> Iterator[str]:
    began = f"{row['started_at'].astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
    if row["finished_at"] is None:
        yield f"The audit {row['id']} of {began} has not finished: it is still under way, or was killed."
        return
    checked = row["checked"]
    since = row["since"].astimezone(UTC)
    when = "" if since <= audit.BEGINNING else f" active since {since:%Y-%m-%d %H:%M}Z"
    yield (
        f"Audit {row['id']} of {began}: {checked['sessions']:,} sessions{when} and {checked['older_sessions']:,} older ones, "
        f"{checked['turns']:,} turns, {checked['events']:,} events, {checked['model_calls']:,} model calls, "
        f"{checked['tool_calls']:,} tool calls, in {checked['seconds']:.1f} s."
    )
    if row["error"]:
        yield f"It did not come to its end: {row['error']}."
    elif not row["complete"]:
        yield "Its time ran out before it had seen all it set out to see; the next one goes on from there. --max-seconds gives it more."
    if checked.get("unasked"):
        yield f"Too large to be asked about: the sessions {', '.join(checked['unasked'])}."
    violations = row["violations"]
    for name, found in sorted(violations.items(), key=lambda item: (item[1]["invariant"], item[0])):
        yield f"\n{name}: {found['count']:,}   (invariant {found['invariant']})\n  {found['meaning']}"
        shown = found["ids"][:limit]
        for one in shown:
            yield f"  session {one['session_id']}" + ("" if one["id"] is None else f"   {found['of']} {one['id']}")
        if found["count"] > len(shown):
            yield f"  … and {found['count'] - len(shown):,} more"
    total = sum(found["count"] for found in violations.values())
    yield f"\n{total:,} violation{'s' if total > 1 else ''}." if violations else "No violations."


@contextmanager
def _progress(shown: bool) -> Iterator[Callable[[int, int], None]]:
    if not shown:
        yield lambda done, total: None
        return
    columns = (TextColumn("sessions"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        bar = progress.add_task("sessions", total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=max(done, total))
