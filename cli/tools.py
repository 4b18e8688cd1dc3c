"""`turnline tools`: how the integrations of all workspaces' tools fare, and what has changed of late."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cli.database import run_query
from settings import Settings
from store.catalog import tool_health
from store.database import MAINTENANCE_ROLE, Database

COLOURS = {"healthy": "green", "degraded": "yellow", "unhealthy": "red", "unknown": "dim"}


def show_health(settings: Settings, *, limit: int, as_json: bool) -> None:
    """Print how many integrations there are of each health, those that are not well, and the latest changes.

    Raises:
        SetupError: the database does not answer or was not migrated.
    """

    async def ask(database: Database) -> dict[str, Any]:
        return {
            "by_status": await tool_health.by_status(database),
            "not_well": await tool_health.ill(database, limit),
            "changes": await tool_health.changes(database, limit),
        }

    told = run_query(settings.maintenance_database_url or settings.database_url, ask, role=MAINTENANCE_ROLE)
    if as_json:
        click.echo(json.dumps(told, default=lambda one: one.isoformat() if isinstance(one, datetime) else str(one), ensure_ascii=False))
        return
    console = Console()
    counts = ", ".join(f"{told['by_status'][name]:,} {name}" for name in COLOURS if told["by_status"].get(name))
    console.print(f"Integrations of tools: {counts or 'there are none'}.")
    if told["not_well"]:
        table = _table("INTEGRATION", "TOOL", "WORKSPACE", "IS", "FAILURES", "ASKED", "LAST ERROR")
        for row in told["not_well"]:
            ids = (str(row["id"]), str(row["tool_id"]), str(row["workspace_id"]))
            table.add_row(
                *ids, _coloured(row["health_status"]), str(row["error_count"]), _when(row["last_health_check"]), row["last_error"]
            )
        console.print("\nNot well:", table, sep="\n")
    if told["changes"]:
        table = _table("WHEN", "INTEGRATION", "TOOL", "WORKSPACE", "BECAME", "WHY")
        for row in told["changes"]:
            ids = (str(row["integration_id"]), str(row["tool_id"]), str(row["workspace_id"]))
            became = f"{_coloured(row['from_status'])} → {_coloured(row['to_status'])}"
            table.add_row(_when(row["created_at"]), *ids, became, escape(row["error"] or ""))
        console.print("\nThe latest changes:", table, sep="\n")


def _table(*columns: str) -> Table:
    return Table(*columns, box=None, pad_edge=False, header_style="bold")


def _coloured(status: str) -> str:
    return f"[{COLOURS[status]}]{status}[/]"


def _when(at: datetime | None) -> str:
    return "never" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
