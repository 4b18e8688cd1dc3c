"""`turnline analytics [AGENT]`: what an agent or all of a workspace came to, drawn in the terminal, over the product's own API."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import click
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from cli.chat import agent_of, opened
from settings import Settings

BLOCKS = " ▁▂▃▄▅▆▇█"
WIDTH = 24


def show(
    settings: Settings,
    agent: str | None,
    *,
    first: str | None,
    last: str | None,
    hours: bool,
    url: str | None,
    api_key: str | None,
    as_json: bool,
) -> None:
    """Print what `agent` (its name or id), or without one the workspace, came to; and day by day or hour by hour.

    By default it is in the last thirty days.

    Raises:
        SetupError: no key, no such agent, days that cannot be answered, or the API cannot be reached.
    """
    with opened(settings, url, api_key) as api:
        of = "/v1" if agent is None else f"/v1/agents/{agent_of(api, agent)['id']}"
        asked = {name: day for name, day in (("from", first), ("to", last)) if day is not None}
        days = api.get(f"{of}/performance", **asked, by="hour" if hours else "day")
        of_days = dict(zip(("from", "to"), days["period"].split("/"), strict=True))
        whole = api.get(f"{of}/analytics", **of_days)
    if as_json:
        click.echo(json.dumps({"analytics": whole, "performance": days}, ensure_ascii=False))
    else:
        Console().print(drawn(whole, days["items"]))


def drawn(whole: dict[str, Any], days: list[dict[str, Any]]) -> Group:
    """An agent's or a workspace's analytics for the terminal; `days` may be hours."""
    metrics, sessions = whole["metrics"], whole["session_stats"]
    name = whole["agent"]["name"] if "agent" in whole else "All agents"
    title = Text(f"{name}  {whole['period'].replace('/', ' to ')}, days of {whole['timezone']}", style="bold")
    facts = Table.grid(padding=(0, 3))
    for name, value in (
        (
            "sessions",
            f"{metrics['session_count']:,} started, {sessions['active_sessions']:,} active, {_of(sessions['completion_rate'])} completed",
        ),
        ("messages", f"{metrics['message_count']:,}"),
        ("turns", ", ".join(f"{count:,} {status}" for status, count in whole["turns"].items() if count) or "none"),
        ("cost", f"${metrics['cost']}" + _missing(whole["model_stats"])),
        (
            "tokens",
            f"{whole['tokens']['input']:,} in, of them {whole['tokens']['cached_input']:,} cached; {whole['tokens']['output']:,} out",
        ),
        ("satisfaction", "not rated" if metrics["satisfaction_score"] is None else f"{metrics['satisfaction_score']:.2f}"),
    ):
        facts.add_row(Text(name, style="dim"), value)
    parts: list[Any] = [title, facts, Text()]
    if days:
        parts += [_days(days, whole["timezone"]), Text()]
    parts += [_stages(whole), *_models(whole["model_stats"]), *_tools(whole["tool_stats"])]
    return Group(*parts)


def sparkline(values: Sequence[float | None]) -> str:
    """Values as one line of blocks, the highest of them full; a value that is not known leaves a gap."""
    most = max((value for value in values if value), default=0)
    return "".join(" " if not value else BLOCKS[max(1, round(value / most * 8))] for value in values)


def bar(value: float, most: float, width: int = WIDTH) -> str:
    """A bar of eighths of a block, `width` long where `value` is `most`."""
    eighths = round(value / most * width * 8) if most else 0
    return "█" * (eighths // 8) + ("▏▎▍▌▋▊▉"[eighths % 8 - 1] if eighths % 8 else "")


def duration(milliseconds: float | None) -> str:
    """A length of time in a few letters."""
    if milliseconds is None:
        return ""
    for unit, size in (("h", 3_600_000), ("min", 60_000), ("s", 1000)):
        if milliseconds >= size:
            return f"{milliseconds / size:.1f} {unit}"
    return f"{milliseconds:.0f} ms"


def _days(days: list[dict[str, Any]], zone: str) -> Group:
    by_hour = days[0]["hour"] is not None
    table = Table(
        "HOUR" if by_hour else "DAY",
        "TURNS",
        "",
        "NOT DONE",
        "SESSIONS",
        "COST",
        "P50",
        "P95",
        "P99",
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    for column in (1, 3, 4, 5, 6, 7, 8):
        table.columns[column].justify = "right"
    turns = [sum(day["turns"].values()) for day in days]
    for day, count in zip(days, turns, strict=True):
        bad = count - day["turns"]["done"]
        drawn_bar = Text(bar(day["turns"]["done"], max(turns)), style="green") + Text(bar(bad, max(turns)), style="red")
        times = [duration(day["response_time"][name]) for name in ("p50", "p95", "p99")]
        table.add_row(
            _hour(day["hour"], zone) if by_hour else day["day"],
            f"{count:,}",
            drawn_bar,
            f"{bad:,}" if bad else "",
            f"{day['session_count']:,}",
            _dollars(day["cost"]),
            *times,
        )
    lines = Table.grid(padding=(0, 3))
    for name, values in (
        ("p95", [day["response_time"]["p95"] for day in days]),
        ("cost", [float(day["cost"]) for day in days]),
        ("messages", [day["message_count"] for day in days]),
    ):
        lines.add_row(Text(name, style="dim"), Text(sparkline(values), style="cyan"))
    return Group(table, Text(), lines)


def _stages(whole: dict[str, Any]) -> Table:
    table = Table("TIME", "COUNT", "P50", "P95", "P99", box=None, pad_edge=False, header_style="bold")
    names = {
        "wait": "waiting for a worker",
        "work": "carried",
        "model": "model call",
        "first_token": "until the first token",
        "tool": "tool call",
    }
    for name, times in (("reply", whole["response_time"]), *((names[stage], times) for stage, times in whole["stages"].items())):
        table.add_row(name, f"{times['count']:,}", *(duration(times[percent]) for percent in ("p50", "p95", "p99")))
    return _right(table)


def _models(models: list[dict[str, Any]]) -> list[Any]:
    table = Table("MODEL", "CALLS", "FAILED", "UNKNOWN", "COST", "P95", box=None, pad_edge=False, header_style="bold")
    for one in models:
        counts = (f"{one[name]:,}" for name in ("calls", "failed_calls", "unknown_calls"))
        table.add_row(f"{one['provider']} {one['model']}", *counts, _dollars(one["cost"]), duration(one["latency"]["p95"]))
    return [Text(), _right(table)] if models else []


def _tools(tools: list[dict[str, Any]]) -> list[Any]:
    table = Table("TOOL", "USES", "SUCCEEDED", "DENIED", "P95", box=None, pad_edge=False, header_style="bold")
    for one in tools:
        name = one["tool_name"] or "(tools it does not have)"
        table.add_row(name, f"{one['use_count']:,}", _of(one["success_rate"]), f"{one['denied']:,}", duration(one["latency"]["p95"]))
    return [Text(), _right(table)] if tools else []


def _right(table: Table) -> Table:
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _hour(at: str, zone: str) -> str:
    return f"{datetime.fromisoformat(at).astimezone(ZoneInfo(zone)):%Y-%m-%d %H:%M}"


def _of(percent: float | None) -> str:
    return "-" if percent is None else f"{percent:.1f} %"


def _dollars(cost: str) -> str:
    return f"${Decimal(cost):.4f}"


def _missing(models: list[dict[str, Any]]) -> str:
    unpriced, unknown = (sum(one[name] for one in models) for name in ("unpriced_calls", "unknown_calls"))
    said = [f"{count:,} calls {why}" for count, why in ((unpriced, "without a price"), (unknown, "that nobody heard the end of")) if count]
    return f" and {', '.join(said)}" if said else ""
