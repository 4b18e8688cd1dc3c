"""`turnline tools`: the health of tool integrations in all workspaces."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console
from rich.markup import escape

from cli.database import run_maintenance_query
from cli.options import json_option, limit_option, require_settings
from cli.output import plain_table, print_json
from store.catalog import tool_health
from store.database import Database

COLOURS = {"healthy": "green", "degraded": "yellow", "unhealthy": "red", "unknown": "dim"}


@click.command()
@limit_option
@json_option()
def tools(limit: int, as_json: bool) -> None:
    """List unhealthy tool integrations and recent changes of health.

    Covers all workspaces. Needs DATABASE_URL.
    """

    async def query(database: Database) -> dict[str, Any]:
        return {
            "by_status": await tool_health.by_status(database),
            "not_well": await tool_health.ill(database, limit),
            "changes": await tool_health.changes(database, limit),
        }

    report = run_maintenance_query(require_settings(broker=False), query)
    if as_json:
        print_json(report)
    else:
        _print_report(report, Console())


def _print_report(report: dict[str, Any], console: Console) -> None:
    counts = ", ".join(f"{report['by_status'][name]:,} {name}" for name in COLOURS if report["by_status"].get(name))
    console.print(f"Tool integrations: {counts or 'there are none'}.")
    if report["not_well"]:
        table = plain_table("INTEGRATION", "TOOL", "WORKSPACE", "HEALTH", "FAILURES", "CHECKED", "LAST ERROR")
        for row in report["not_well"]:
            ids = (str(row["id"]), str(row["tool_id"]), str(row["workspace_id"]))
            health = _coloured(row["health_status"])
            table.add_row(*ids, health, str(row["error_count"]), _time(row["last_health_check"]), escape(row["last_error"] or ""))
        console.print("\nUnhealthy or degraded:", table, sep="\n")
    if report["changes"]:
        table = plain_table("TIME", "INTEGRATION", "TOOL", "WORKSPACE", "CHANGE", "ERROR")
        for row in report["changes"]:
            ids = (str(row["integration_id"]), str(row["tool_id"]), str(row["workspace_id"]))
            change = f"{_coloured(row['from_status'])} → {_coloured(row['to_status'])}"
            table.add_row(_time(row["created_at"]), *ids, change, escape(row["error"] or ""))
        console.print("\nRecent changes:", table, sep="\n")


def _coloured(status: str) -> str:
    return f"[{COLOURS[status]}]{status}[/]"


def _time(at: datetime | None) -> str:
    return "never" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
