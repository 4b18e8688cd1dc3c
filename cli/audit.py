"""`turnline audit`: check the consistency of a live database."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

import click
import pydantic

from cli.database import run_maintenance_query
from cli.errors import SetupError
from cli.options import Duration, json_option, require_settings
from cli.output import print_json, progress_bar
from cli.settings_errors import describe_settings_error
from settings import Settings
from store.database import Database
from store.operations import audit as store_audit


@click.command()
@json_option("Print the result as one JSON object.")
@click.option("--since", metavar="DURATION", type=Duration(), help="Check the sessions active in the last 90s, 15m, 2h, 7d … instead.")
@click.option("--all", "everything", is_flag=True, help="Check all sessions, as far as the time allows.")
@click.option("--limit", type=click.IntRange(1, 20), default=10, show_default=True, help="Ids to show of each violation.")
@click.option("--max-seconds", type=click.FloatRange(min=0), help="Time limit. Default: TURNLINE_AUDIT_MAX_S, 60.")
@click.option("--last", is_flag=True, help="Show the last audit instead of running one.")
def audit(as_json: bool, since: timedelta | None, everything: bool, limit: int, max_seconds: float | None, last: bool) -> None:
    """Check the consistency of a live database.

    Checks that no message is lost, nothing was done twice and every counter is right, in the sessions active since the last audit and
    in some of the older ones. Reads ids, states and counts, but no message texts.

    Exits with 0 if there are no violations, 1 if there are some, 2 if the audit failed.

    \b
    Example:
      turnline audit --since 7d
      turnline audit --last --json
    """
    if bool(since) + everything + last > 1:
        raise click.UsageError("Give only one of --since, --all and --last.")
    try:
        settings = require_settings(broker=False)
        if last:
            row = last_audit(settings)
        else:
            max_s = settings.audit_max_s if max_seconds is None else max_seconds
            row = run_audit(settings, since=_start(since, everything), max_s=max_s, show_progress=sys.stderr.isatty() and not as_json)
    except SetupError as error:
        _fail(str(error))
    except pydantic.ValidationError as error:
        _fail(describe_settings_error(error))
    if as_json:
        print_json(row)
    else:
        click.echo("\n".join(_lines(row, limit)))
    sys.exit(_exit_code(row))


def run_audit(settings: Settings, *, since: datetime | None, max_s: float, show_progress: bool) -> dict[str, Any]:
    """Run an audit and return its row. `since` None: continue from the previous audit.

    Raises:
        SetupError: the database does not answer or was not migrated.
    """

    async def query(database: Database) -> dict[str, Any]:
        with progress_bar("sessions", shown=show_progress) as on_progress:
            report = await store_audit.run(database, since=since, max_s=max_s, on_progress=on_progress)
        return await store_audit.row(database, report.id)

    return run_maintenance_query(settings, query)


def last_audit(settings: Settings) -> dict[str, Any]:
    """Return the row of the last audit, finished or not.

    Raises:
        SetupError: there is none, or the database does not answer.
    """
    rows = run_maintenance_query(settings, store_audit.latest)
    if not rows:
        raise SetupError("There has been no audit yet. `turnline audit` runs one; the scheduler does so every day.")
    return rows[0]


def _start(since: timedelta | None, everything: bool) -> datetime | None:
    """Return the time since which a session must have been active to be checked, or None to continue from the previous audit."""
    if everything:
        return store_audit.BEGINNING
    return datetime.now(UTC) - since if since else None


def _fail(message: str) -> NoReturn:
    click.echo(f"Error: {message}", err=True)
    sys.exit(2)


def _exit_code(row: dict[str, Any]) -> int:
    if row["finished_at"] is None or row["error"]:
        return 2
    return 1 if row["violations"] else 0


def _lines(row: dict[str, Any], limit: int) -> Iterator[str]:
    """Yield the audit as lines of text, with at most `limit` ids of each violation."""
    began = f"{row['started_at'].astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
    if row["finished_at"] is None:
        yield f"The audit {row['id']} of {began} has not finished: it is still running, or was killed."
        return
    checked = row["checked"]
    since = row["since"].astimezone(UTC)
    when = "" if since <= store_audit.BEGINNING else f" active since {since:%Y-%m-%d %H:%M}Z"
    yield (
        f"Audit {row['id']} of {began}: {checked['sessions']:,} sessions{when} and {checked['older_sessions']:,} older ones, "
        f"{checked['turns']:,} turns, {checked['events']:,} events, {checked['model_calls']:,} model calls, "
        f"{checked['tool_calls']:,} tool calls, in {checked['seconds']:.1f} s."
    )
    if row["error"]:
        yield f"It failed: {row['error']}."
    elif not row["complete"]:
        yield "It ran out of time before all sessions were checked; the next audit continues from there. Use --max-seconds for more time."
    if checked.get("unasked"):
        yield f"Not checked because they are too large: the sessions {', '.join(checked['unasked'])}."
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
