"""`turnline turns` and `turnline turn ID`: the truth about turns, from the database, as text."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from settings import Settings
from store import overview
from store.database import MAINTENANCE_ROLE, Database
from tasks.asking import asked, place
from tasks.processes import SetupError

STUCK_FOR_S = 30.0


def list_turns(settings: Settings, *, stuck: bool, limit: int) -> str:
    """A table of the newest turns, or of those nobody carries.

    Raises:
        SetupError: the database does not answer.
    """

    async def ask(database: Database) -> list[dict[str, Any]]:
        return await (overview.stuck(database, limit, STUCK_FOR_S) if stuck else overview.latest(database, limit))

    url = settings.maintenance_database_url or settings.database_url
    rows = asked(url, ask, role=MAINTENANCE_ROLE)
    if not rows:
        return f"No turn has been waiting for a worker for more than {STUCK_FOR_S:.0f} s." if stuck else "There are no turns yet."
    cells = [
        [str(row["id"]), str(row["session_id"]), row["status"], str(row["attempts"]), _ago(row["opened_at"]), row["carried_by"] or ""]
        for row in rows
    ]
    return _columns([["TURN", "SESSION", "STATUS", "ATTEMPTS", "OPENED", "CARRIED BY"], *cells])


def show_turn(settings: Settings, turn_id: UUID) -> str:
    """One turn: its row, its model calls with tokens and cost, its tool calls.

    Raises:
        SetupError: there is no such turn, or the database does not answer.
    """
    found = asked(settings.database_url, lambda database: overview.one(database, turn_id))
    if found is None:
        raise SetupError(f"There is no turn {turn_id} in {place(settings.database_url)}.")
    turn, models, tools = found
    text = [_columns([[name, _shown(value)] for name, value in turn.items() if value is not None])]
    for title, rows in (("Model calls", models), ("Tool calls", tools)):
        if rows:
            text.append(f"\n{title}\n" + _columns([list(rows[0]), *([_shown(value) for value in row.values()] for row in rows)]))
    return "\n".join(text)


def _shown(value: object) -> str:
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
    return "-" if value is None else str(value)


def _ago(moment: datetime) -> str:
    seconds = max(0, int((datetime.now(UTC) - moment).total_seconds()))
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit} ago"
    return f"{seconds} s ago"


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[number]) for row in rows) for number in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
