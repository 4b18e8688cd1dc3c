"""`turnline turn`: everything about one turn."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import click
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cli.database import run_query, safe_url
from cli.errors import SetupError
from cli.options import json_option, require_settings, turn_id_argument
from cli.turns import print_turns_json, terminal
from store.operations import turn_lists

Row = Mapping[str, Any]

_STATUS = {"done": "green", "dead": "red", "failed": "red", "cancelled": "yellow", "waiting": "yellow"}


@click.command()
@turn_id_argument
@click.option("--contents", is_flag=True, help="Include messages, tool arguments and results.")
@json_option()
def turn(turn_id: UUID, contents: bool, as_json: bool) -> None:
    """Show everything about one turn.

    Its state, timeline, failed attempts, model and tool calls, times and cost. Without --contents nothing that a customer or the
    agent wrote is shown.
    """
    settings = require_settings(broker=False)
    report = run_query(settings.database_url, lambda database: turn_lists.story(database, turn_id, contents=contents))
    if report is None:
        raise SetupError(f"There is no turn {turn_id} in {safe_url(settings.database_url)}.")
    if as_json:
        print_turns_json(report)
        return
    console = terminal()
    for section in _sections(report):
        console.print(section)


def _sections(report: Row) -> Iterable[RenderableType]:
    yield _facts(report)
    if report["endings"]:
        yield _titled("Failed attempts", ("CLAIMED", "ERROR", "REASON"), (_ending(one) for one in report["endings"]))
    yield _titled("Timeline", ("OFFSET", "TIME", "KIND", "FROM", "STATUS", "TOOL"), (_event(one) for one in report["timeline"]))
    if any("content" in one for one in report["timeline"]):
        yield _titled("Contents", ("OFFSET", "CONTENT"), ((str(one["offset"]), _content(one)) for one in report["timeline"]))
    if report["model_calls"]:
        columns = ("STEP", "STATE", "MODEL", "IN (CACHED)", "OUT", "COST, USD", "FIRST TOKEN", "TOOK", "ERROR")
        yield _titled("Model calls", columns, (_model_call(one) for one in report["model_calls"]))
    if report["tool_calls"]:
        approvals = {one["tool_call_id"]: one for one in report["approvals"]}
        titles = ("STEP", "TOOL", "STATE", "ATTEMPTS", "TOOK", "APPROVAL", "ERROR")
        yield _titled("Tool calls", titles, (_tool_call(one, approvals.get(one["tool_call_id"])) for one in report["tool_calls"]))


def _facts(report: Row) -> Table:
    stages = ", ".join(f"{name} {_ms(ms)}" for name, ms in report["stages_ms"].items() if ms is not None)
    error = report["error"]
    version = "-" if report["agent_version"] is None else f"version {report['agent_version']}"
    facts: list[tuple[str, object]] = [
        ("turn", report["id"]),
        ("session", f"{report['session_id']} (mode {report['mode']})"),
        ("workspace", report["workspace_id"]),
        ("status", Text(report["status"], _STATUS.get(report["status"], ""))),
        ("error", None if error is None else f"{error['class']}: {error['detail'] or '-'}"),
        ("messages", f"opened by offset {report['opened_at_offset']}, read through {_or_dash(report['read_through_offset'])}"),
        ("strategy", report["strategy"]),
        ("agent", version + (f", {report['agent_digest'][:12]}" if report["agent_digest"] else "")),
        ("attempts", f"{report['attempts']} since it was last redriven, {report['redrives']} redrives"),
        ("opened", _when(report["opened_at"])),
        ("started", _when(report["started_at"])),
        ("ended", _when(report["settled_at"])),
        ("not before", _when(report["not_before"]) if report["not_before"] else None),
        (
            "dispatched",
            f"{_when(report['dispatched_at'])}, {report['dispatch_count']} times by the sweep; admission {report['admission']}",
        ),
        ("cancelled", f"{_when(report['cancel_requested_at'])} by {report['cancelled_by']}" if report["cancel_requested_at"] else None),
        ("quarantined", f"its session, since {_when(report['quarantined_at'])}" if report["quarantined_at"] else None),
        ("took", stages or None),
        ("cost", _total(report)),
    ]
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in facts:
        if value is not None:
            table.add_row(name, value if isinstance(value, Text) else escape(str(value)))
    return table


def _titled(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(*columns, title=f"\n{title}", box=None, pad_edge=False, title_justify="left", title_style="bold", header_style="dim")
    for column in table.columns:
        column.overflow = "fold"
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return table


def _ending(one: Row) -> tuple[str, ...]:
    claimed = datetime.fromisoformat(one["claimed_at"]) if one["claimed_at"] else None
    return _when(claimed), one["error_class"] or "-", one["detail"] or "-"


def _event(one: Row) -> tuple[str, ...]:
    status = (one["status"] or "") + (f" by {one['by']}" if one["by"] else "")
    return (
        str(one["offset"]),
        f"{one['created_at'].astimezone(UTC):%m-%d %H:%M:%S.%f}"[:-3],
        one["kind"],
        one["source"],
        status,
        one["tool_name"] or "",
    )


def _content(one: Row) -> str:
    return json.dumps(one["content"], ensure_ascii=False)


def _model_call(one: Row) -> tuple[str, ...]:
    mark = "~" if one["estimated"] else ""
    tokens = f"{mark}{one['input_tokens']}" + (f" ({one['cached_input_tokens']})" if one["cached_input_tokens"] else "")
    return (
        f"{one['step']}.{one['attempt']}",
        one["state"],
        one["model"],
        tokens,
        f"{mark}{one['output_tokens']}",
        _cost(one),
        _ms(one["ttft_ms"]),
        _ms(one["latency_ms"]),
        one["error_class"] or "",
    )


def _cost(one: Row) -> str:
    if one["cost_usd"] is not None:
        return ("~" if one["estimated"] else "") + _money(one["cost_usd"])
    return {"settled": "unpriced", "unknown": "unknown"}.get(one["state"], "-")


def _total(report: Row) -> str:
    estimated = sum(call["estimated"] for call in report["model_calls"])
    marks = [
        f"{count} {name}"
        for count, name in ((estimated, "estimated"), (report["unpriced_calls"], "unpriced"), (report["unknown_calls"], "unknown"))
        if count
    ]
    total = "-" if report["cost_usd"] is None else f"{_money(report['cost_usd'])} USD"
    return total + (f" (model calls: {', '.join(marks)})" if marks else "")


def _tool_call(one: Row, approval: Row | None) -> tuple[str, ...]:
    step = f"{one['step']}.{one['position']}"
    return step, one["tool_name"], one["state"], str(one["attempts"]), _ms(one["latency_ms"]), _approval(approval), one["error"] or ""


def _approval(one: Row | None) -> str:
    if one is None:
        return ""
    if one["status"] == "pending":
        return f"pending until {_when(one['expires_at'])}"
    by = f" by {one['decided_by']}" if one["decided_by"] else ""
    return f"{one['status']}{by}" + (f", {_when(one['decided_at'])}" if one["decided_at"] else "")


def _money(amount: Decimal) -> str:
    return f"{amount.normalize():f}"


def _ms(value: int | None) -> str:
    if value is None:
        return "-"
    return f"{value} ms" if value < 10_000 else f"{value / 1000:.1f} s"


def _or_dash(value: object) -> object:
    return "-" if value is None else value


def _when(moment: datetime | None) -> str:
    return "-" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
