"""`turnline turn ID`: a turn's whole story, for a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

Row = Mapping[str, Any]

_STATUS = {"done": "green", "dead": "red", "failed": "red", "cancelled": "yellow", "waiting": "yellow"}


def tell(story: Row, console: Console) -> None:
    """Print the story of a turn: its row, then what happened to it, call by call."""
    for part in _parts(story):
        console.print(part)


def _parts(story: Row) -> Iterable[RenderableType]:
    yield _facts(story)
    if story["endings"]:
        yield _titled("Claims that ended badly", ("CLAIMED", "ERROR", "WHY"), (_ending(one) for one in story["endings"]))
    yield _titled("Timeline", ("OFFSET", "TIME", "KIND", "FROM", "STATUS", "TOOL"), (_event(one) for one in story["timeline"]))
    if any("content" in one for one in story["timeline"]):
        yield _titled("Contents", ("OFFSET", "CONTENT"), ((str(one["offset"]), _content(one)) for one in story["timeline"]))
    if story["model_calls"]:
        columns = ("STEP", "STATE", "MODEL", "IN (CACHED)", "OUT", "COST, USD", "FIRST", "ALL", "ERROR")
        yield _titled("Model calls", columns, (_model_call(one) for one in story["model_calls"]))
    if story["tool_calls"]:
        decided = {one["tool_call_id"]: one for one in story["approvals"]}
        heads = ("STEP", "TOOL", "STATE", "SENT", "TOOK", "APPROVAL", "ERROR")
        yield _titled("Tool calls", heads, (_tool_call(one, decided.get(one["tool_call_id"])) for one in story["tool_calls"]))


def _facts(story: Row) -> Table:
    stages = ", ".join(f"{name} {_ms(ms)}" for name, ms in story["stages_ms"].items() if ms is not None)
    error = story["error"]
    version = "-" if story["agent_version"] is None else f"version {story['agent_version']}"
    facts: list[tuple[str, object]] = [
        ("turn", story["id"]),
        ("session", f"{story['session_id']} (mode {story['mode']})"),
        ("workspace", story["workspace_id"]),
        ("status", Text(story["status"], _STATUS.get(story["status"], ""))),
        ("error", None if error is None else f"{error['class']}: {error['detail'] or '-'}"),
        ("messages", f"opened by offset {story['opened_at_offset']}, read through {_or_dash(story['read_through_offset'])}"),
        ("strategy", story["strategy"]),
        ("agent", version + (f", {story['agent_digest'][:12]}" if story["agent_digest"] else "")),
        ("attempts", f"{story['attempts']} since it was last redriven, {story['redrives']} redrives"),
        ("opened", _when(story["opened_at"])),
        ("started", _when(story["started_at"])),
        ("ended", _when(story["settled_at"])),
        ("not before", _when(story["not_before"]) if story["not_before"] else None),
        ("dispatched", f"{_when(story['dispatched_at'])}, {story['dispatch_count']} times by the sweep; admission: {story['admission']}"),
        ("cancelled", f"{_when(story['cancel_requested_at'])} by {story['cancelled_by']}" if story["cancel_requested_at"] else None),
        ("quarantined", f"the session, since {_when(story['quarantined_at'])}" if story["quarantined_at"] else None),
        ("took", stages or None),
        ("cost", _total(story)),
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


def _total(story: Row) -> str:
    estimated = sum(call["estimated"] for call in story["model_calls"])
    marks = [
        f"{count} {name}"
        for count, name in ((estimated, "estimated"), (story["unpriced_calls"], "unpriced"), (story["unknown_calls"], "unknown"))
        if count
    ]
    said = "-" if story["cost_usd"] is None else f"{_money(story['cost_usd'])} USD"
    return said + (f" (model calls: {', '.join(marks)})" if marks else "")


def _tool_call(one: Row, approval: Row | None) -> tuple[str, ...]:
    place = f"{one['step']}.{one['position']}"
    return place, one["tool_name"], one["state"], str(one["attempts"]), _ms(one["latency_ms"]), _approval(approval), one["error"] or ""


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
