"""`turnline turns`: lists of turns."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cli.database import run_maintenance_query
from cli.options import Duration, json_option, limit_option, require_settings
from cli.output import format_duration
from settings import Settings
from store.database import Database
from store.operations import stuck_turns, turn_lists

STUCK_AFTER_S = 30.0

Rows = list[dict[str, Any]]


@click.command()
@click.option("--stuck", is_flag=True, help="Open turns that no worker has claimed for 30 s, with the reason; and those of --dead.")
@click.option("--dead", is_flag=True, help="Turns that died or failed recently and were not redriven.")
@click.option("--since", metavar="DURATION", type=Duration(), default="1d", show_default=True, help="How recently: 15m, 2h, 7d …")
@limit_option
@json_option()
def turns(stuck: bool, dead: bool, since: timedelta, limit: int, as_json: bool) -> None:
    """List turns, the newest first.

    Reads the database, so it works without a broker. Messages are not shown.

    \b
    Example:
      turnline turns --stuck
      turnline turns --dead --since 2h --json
    """
    settings = require_settings(broker=False)
    if stuck or dead:
        show_stuck(settings, limit=limit, dead_only=not stuck, within_s=since.total_seconds(), as_json=as_json)
    else:
        show_latest(settings, limit=limit, as_json=as_json)


def show_latest(settings: Settings, *, limit: int, as_json: bool) -> None:
    """Print the newest turns. Raises SetupError if the database does not answer."""
    rows = run_maintenance_query(settings, lambda database: turn_lists.latest(database, limit))
    if as_json:
        print_turns_json({"turns": rows})
    elif not rows:
        terminal().print("There are no turns yet.")
    else:
        cells = [(row["id"], row["status"], row["attempts"], _ago(row["opened_at"]), row["claimed_by"] or "") for row in rows]
        terminal().print(_table(("TURN", "STATUS", "ATTEMPTS", "OPENED", "CLAIMED BY"), cells))


def show_stuck(settings: Settings, *, limit: int, dead_only: bool, within_s: float, as_json: bool) -> None:
    """Print the turns that need attention: open and unclaimed ones with the reason, and those that died or failed recently.

    Raises:
        SetupError: the database does not answer.
    """

    async def query(database: Database) -> tuple[Rows, Rows]:
        unclaimed = [] if dead_only else await stuck_turns.open_turns(database, limit, STUCK_AFTER_S)
        return unclaimed, await stuck_turns.ended(database, limit, within_s)

    unclaimed, ended = run_maintenance_query(settings, query)
    if as_json:
        print_turns_json({"ended": ended} if dead_only else {"open": unclaimed, "ended": ended})
        return
    console = terminal()
    if unclaimed:
        console.print(f"[bold]Open, and unclaimed for more than {STUCK_AFTER_S:.0f} s[/bold]")
        cells = [(row["id"], row["status"], _ago(row["since"]), row["why"] + _behind(row["behind"])) for row in unclaimed]
        console.print(_table(("TURN", "STATUS", "SINCE", "REASON"), cells))
    elif not dead_only:
        console.print(f"No open turn has been unclaimed for more than {STUCK_AFTER_S:.0f} s.")
    if ended:
        console.print(
            f"{'' if dead_only else chr(10)}[bold]Dead or failed within the last {format_duration(within_s)}, and not redriven[/bold]"
        )
        cells = [(row["id"], row["status"], _ago(row["settled_at"]), _ending(row)) for row in ended]
        console.print(_table(("TURN", "STATUS", "ENDED", "REASON"), cells))
        console.print("\n`turnline turn ID` shows what happened; `turnline redrive ID` runs a turn again.")
    else:
        console.print(f"No turn died or failed within the last {format_duration(within_s)} without being redriven.")


def terminal() -> Console:
    """Return a console as wide as the terminal, at least 80 columns, and 100 if there is no terminal."""
    return Console(highlight=False, width=max(80, shutil.get_terminal_size((100, 24)).columns))


def print_turns_json(value: object) -> None:
    """Print `value` as one JSON object. Times end in Z, and amounts of money are strings, as in the API."""

    def convert(one: object) -> object:
        if isinstance(one, datetime):
            return one.astimezone(UTC).isoformat().replace("+00:00", "Z")
        return format(one, "f") if isinstance(one, Decimal) else str(one)

    sys.stdout.write(json.dumps(value, default=convert, ensure_ascii=False) + "\n")


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for number, name in enumerate(columns):
        table.add_column(name, no_wrap=number == 0, overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    return table


def _ending(row: dict[str, Any]) -> str:
    text = f"{row['error_class'] or '?'}, {row['attempts']} attempt{'' if row['attempts'] == 1 else 's'}"
    if row["quarantined_at"] is not None:
        text += "; its session is quarantined"
    return text + (f"; cannot be redriven: {row['not_redrivable']}" if row["not_redrivable"] else "")


def _behind(count: int) -> str:
    return f"; {count} more wait behind it" if count else ""


def _ago(moment: datetime) -> str:
    return f"{format_duration((datetime.now(UTC) - moment).total_seconds())} ago"
