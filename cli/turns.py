"""`turnline turns` and `turnline turn ID`: the truth about turns, from the database."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cli.database import run_query, safe_url
from cli.errors import SetupError
from cli.turn_report import tell
from settings import Settings
from store.database import MAINTENANCE_ROLE, Database
from store.operations import stuck_turns, turn_lists

STUCK_FOR_S = 30.0

Rows = list[dict[str, Any]]


def show_latest(settings: Settings, *, limit: int, as_json: bool) -> None:
    """Print the newest turns. Raises SetupError where the database does not answer."""
    rows = _as_maintenance(settings, lambda database: turn_lists.latest(database, limit))
    if as_json:
        _print_json({"turns": rows})
    elif not rows:
        _console().print("There are no turns yet.")
    else:
        cells = [(row["id"], row["status"], row["attempts"], _ago(row["opened_at"]), row["claimed_by"] or "") for row in rows]
        _console().print(_table(("TURN", "STATUS", "ATTEMPTS", "OPENED", "CARRIED BY"), cells))


def show_stuck(settings: Settings, *, limit: int, dead_only: bool, within_s: float, as_json: bool) -> None:
    """Print what an operator must look at: open turns that nobody carries, and why; turns that died or failed of late.

    Raises:
        SetupError: the database does not answer.
    """

    async def ask(database: Database) -> tuple[Rows, Rows]:
        held_up = [] if dead_only else await stuck_turns.open_turns(database, limit, STUCK_FOR_S)
        return held_up, await stuck_turns.ended(database, limit, within_s)

    held_up, ended = _as_maintenance(settings, ask)
    if as_json:
        _print_json({"ended": ended} if dead_only else {"open": held_up, "ended": ended})
        return
    console = _console()
    if held_up:
        console.print(f"[bold]Open, and carried by nobody for more than {STUCK_FOR_S:.0f} s[/bold]")
        cells = [(row["id"], row["status"], _ago(row["since"]), row["why"] + _behind(row["behind"])) for row in held_up]
        console.print(_table(("TURN", "STATUS", "SINCE", "WHY"), cells))
    elif not dead_only:
        console.print(f"No open turn has been without a worker for more than {STUCK_FOR_S:.0f} s.")
    if ended:
        console.print(f"{'' if dead_only else chr(10)}[bold]Dead or failed within the last {_length(within_s)}, and not redriven[/bold]")
        cells = [(row["id"], row["status"], _ago(row["settled_at"]), _ending(row)) for row in ended]
        console.print(_table(("TURN", "STATUS", "ENDED", "WHY"), cells))
        console.print("\n`turnline turn ID` tells what happened; `turnline redrive ID` gives it another go.")
    else:
        console.print(f"No turn has died or failed within the last {_length(within_s)} that was not redriven.")


def show_turn(settings: Settings, turn_id: UUID, *, contents: bool, as_json: bool) -> None:
    """Print a turn's whole story; what was said only with `contents`.

    Raises:
        SetupError: there is no such turn, or the database does not answer.
    """
    found = run_query(settings.database_url, lambda database: turn_lists.story(database, turn_id, contents=contents))
    if found is None:
        raise SetupError(f"There is no turn {turn_id} in {safe_url(settings.database_url)}.")
    if as_json:
        _print_json(found)
    else:
        tell(found, _console())


def _as_maintenance(settings: Settings, ask: Any) -> Any:
    return run_query(settings.maintenance_database_url or settings.database_url, ask, role=MAINTENANCE_ROLE)


def _console() -> Console:
    """As wide as the terminal, and 100 columns where there is none."""
    return Console(highlight=False, width=max(80, shutil.get_terminal_size((100, 24)).columns))


def _print_json(value: object) -> None:
    def plain(one: object) -> object:
        if isinstance(one, datetime):
            return one.astimezone(UTC).isoformat().replace("+00:00", "Z")
        return format(one, "f") if isinstance(one, Decimal) else str(one)

    sys.stdout.write(json.dumps(value, default=plain, ensure_ascii=False) + "\n")


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for number, name in enumerate(columns):
        table.add_column(name, no_wrap=number == 0, overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    return table


def _ending(row: dict[str, Any]) -> str:
    said = f"{row['error_class'] or '?'}, {row['attempts']} attempt{'' if row['attempts'] == 1 else 's'}"
    if row["quarantined_at"] is not None:
        said += "; its session is quarantined"
    return said + (f"; cannot be redriven: {row['not_redrivable']}" if row["not_redrivable"] else "")


def _behind(count: int) -> str:
    return f"; {count} more wait behind it" if count else ""


def _ago(moment: datetime) -> str:
    return f"{_length(max(0.0, (datetime.now(UTC) - moment).total_seconds()))} ago"


def _length(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s"
