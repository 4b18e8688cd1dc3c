"""`turnline analytics`: analytics of an agent or a workspace as text, over our own API."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import click
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from cli.api_client import connect, find_agent
from cli.options import api_key_option, json_option, url_option
from cli.output import plain_table
from settings import get_settings

BLOCKS = " ▁▂▃▄▅▆▇█"
BAR_WIDTH = 24
STAGES = {
    "wait": "waiting for a worker",
    "work": "running",
    "model": "model call",
    "first_token": "until the first token",
    "tool": "tool call",
}

Row = Mapping[str, Any]


@click.command()
@click.argument("agent", required=False)
@click.option("--from", "first", metavar="DAY", help="First day, like 2026-11-01. Default: thirty days in all.")
@click.option("--to", "last", metavar="DAY", help="Last day. Default: today, in the workspace's time zone.")
@click.option("--hours", is_flag=True, help="Show hours instead of days; at most 31 days.")
@url_option
@api_key_option
@json_option()
def analytics(
    agent: str | None, first: str | None, last: str | None, hours: bool, url: str | None, api_key: str | None, as_json: bool
) -> None:
    """Show analytics of AGENT, or of the whole workspace.

    Sessions, turns, times, cost, models and tools, in total and day by day. AGENT is a name or an id. Needs a running API.

    \b
    Example:
      turnline analytics "Order desk" --from 2026-11-01 --to 2026-11-07 --hours
    """
    with connect(get_settings(), url, api_key) as api:
        base = "/v1" if agent is None else f"/v1/agents/{find_agent(api, agent)['id']}"
        requested = {name: day for name, day in (("from", first), ("to", last)) if day is not None}
        performance = api.get(f"{base}/performance", **requested, by="hour" if hours else "day")
        period = dict(zip(("from", "to"), performance["period"].split("/"), strict=True))
        totals = api.get(f"{base}/analytics", **period)
    if as_json:
        click.echo(json.dumps({"analytics": totals, "performance": performance}, ensure_ascii=False))
    else:
        Console().print(render(totals, performance["items"]))


def render(totals: Row, items: Sequence[Row]) -> Group:
    """Return analytics as text for the terminal. `items` are days or hours."""
    sections: list[RenderableType] = [_title(totals), _facts(totals), Text()]
    if items:
        sections += [_chart(items, totals["timezone"]), Text()]
    return Group(*sections, _stages(totals), *_models(totals["model_stats"]), *_tools(totals["tool_stats"]))


def _title(totals: Row) -> Text:
    name = totals["agent"]["name"] if "agent" in totals else "All agents"
    return Text(f"{name}  {totals['period'].replace('/', ' to ')}, days of {totals['timezone']}", style="bold")


def _facts(totals: Row) -> Table:
    metrics, sessions, tokens = totals["metrics"], totals["session_stats"], totals["tokens"]
    completed = _percent(sessions["completion_rate"])
    satisfaction = metrics["satisfaction_score"]
    table = Table.grid(padding=(0, 3))
    for name, value in (
        ("sessions", f"{metrics['session_count']:,} started, {sessions['active_sessions']:,} active, {completed} completed"),
        ("messages", f"{metrics['message_count']:,}"),
        ("turns", ", ".join(f"{count:,} {status}" for status, count in totals["turns"].items() if count) or "none"),
        ("cost", f"${metrics['cost']}" + _uncounted(totals["model_stats"])),
        ("tokens", f"{tokens['input']:,} in (of which {tokens['cached_input']:,} cached), {tokens['output']:,} out"),
        ("satisfaction", "not rated" if satisfaction is None else f"{satisfaction:.2f}"),
    ):
        table.add_row(Text(name, style="dim"), value)
    return table


def _uncounted(models: Sequence[Row]) -> str:
    """Return a note about model calls that the cost does not include, or ""."""
    unpriced, unknown = (sum(model[name] for model in models) for name in ("unpriced_calls", "unknown_calls"))
    notes = [f"{count:,} calls {why}" for count, why in ((unpriced, "without a price"), (unknown, "with unknown usage")) if count]
    return f" and {', '.join(notes)}" if notes else ""


def _chart(items: Sequence[Row], zone: str) -> Group:
    by_hour = items[0]["hour"] is not None
    table = plain_table("HOUR" if by_hour else "DAY", "TURNS", "", "NOT DONE", "SESSIONS", "COST", "P50", "P95", "P99")
    for column in (1, 3, 4, 5, 6, 7, 8):
        table.columns[column].justify = "right"
    turns = [sum(item["turns"].values()) for item in items]
    for item, count in zip(items, turns, strict=True):
        not_done = count - item["turns"]["done"]
        table.add_row(
            _hour(item["hour"], zone) if by_hour else item["day"],
            f"{count:,}",
            Text(bar(item["turns"]["done"], max(turns)), style="green") + Text(bar(not_done, max(turns)), style="red"),
            f"{not_done:,}" if not_done else "",
            f"{item['session_count']:,}",
            _dollars(item["cost"]),
            *_percentiles(item["response_time"]),
        )
    lines = Table.grid(padding=(0, 3))
    for name, values in (
        ("p95", [item["response_time"]["p95"] for item in items]),
        ("cost", [float(item["cost"]) for item in items]),
        ("messages", [item["message_count"] for item in items]),
    ):
        lines.add_row(Text(name, style="dim"), Text(sparkline(values), style="cyan"))
    return Group(table, Text(), lines)


def _stages(totals: Row) -> Table:
    table = plain_table("TIME", "COUNT", "P50", "P95", "P99")
    for name, times in (("reply", totals["response_time"]), *((STAGES[stage], times) for stage, times in totals["stages"].items())):
        table.add_row(name, f"{times['count']:,}", *_percentiles(times))
    return _right_aligned(table)


def _models(models: Sequence[Row]) -> list[RenderableType]:
    table = plain_table("MODEL", "CALLS", "FAILED", "UNKNOWN", "COST", "P95")
    for model in models:
        counts = (f"{model[name]:,}" for name in ("calls", "failed_calls", "unknown_calls"))
        table.add_row(f"{model['provider']} {model['model']}", *counts, _dollars(model["cost"]), duration(model["latency"]["p95"]))
    return [Text(), _right_aligned(table)] if models else []


def _tools(tools: Sequence[Row]) -> list[RenderableType]:
    table = plain_table("TOOL", "USES", "SUCCEEDED", "DENIED", "P95")
    for tool in tools:
        name = tool["tool_name"] or "(tools it does not have)"
        succeeded = _percent(tool["success_rate"])
        table.add_row(name, f"{tool['use_count']:,}", succeeded, f"{tool['denied']:,}", duration(tool["latency"]["p95"]))
    return [Text(), _right_aligned(table)] if tools else []


def sparkline(values: Sequence[float | None]) -> str:
    """Return values as one line of blocks, scaled to the highest. Unknown values leave a gap."""
    highest = max((value for value in values if value), default=0)
    return "".join(" " if not value else BLOCKS[max(1, round(value / highest * 8))] for value in values)


def bar(value: float, maximum: float, width: int = BAR_WIDTH) -> str:
    """Return a bar in eighths of a block, `width` characters long if `value` equals `maximum`."""
    eighths = round(value / maximum * width * 8) if maximum else 0
    return "█" * (eighths // 8) + ("▏▎▍▌▋▊▉"[eighths % 8 - 1] if eighths % 8 else "")


def duration(milliseconds: float | None) -> str:
    """Return a duration with its unit, such as "1.5 min", or "" for None."""
    if milliseconds is None:
        return ""
    for unit, size in (("h", 3_600_000), ("min", 60_000), ("s", 1000)):
        if milliseconds >= size:
            return f"{milliseconds / size:.1f} {unit}"
    return f"{milliseconds:.0f} ms"


def _percentiles(times: Row) -> list[str]:
    return [duration(times[name]) for name in ("p50", "p95", "p99")]


def _right_aligned(table: Table) -> Table:
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _hour(at: str, zone: str) -> str:
    return f"{datetime.fromisoformat(at).astimezone(ZoneInfo(zone)):%Y-%m-%d %H:%M}"


def _percent(percent: float | None) -> str:
    return "-" if percent is None else f"{percent:.1f} %"


def _dollars(cost: str) -> str:
    return f"${Decimal(cost):.4f}"
