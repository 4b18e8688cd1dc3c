"""The expected rollups, counted from the rows in plain Python."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import psycopg
from psycopg.rows import namedtuple_row

from engine import histogram

NIL = UUID(int=0)
ENDED = ("succeeded", "failed", "denied", "unknown")


@dataclass
class Sums:
    """One row of a rollup: its numbers, and its times by name."""

    numbers: Counter[str] = field(default_factory=Counter)
    times: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    def plain(self) -> dict[str, Any]:
        """Return it in the rollup's form, without zeros and empty histograms."""
        found: dict[str, Any] = {name: Decimal(number) for name, number in self.numbers.items() if number}
        return found | {name: histogram.merge(histogram.of(times)) for name, times in self.times.items() if times}


Key = tuple[Any, ...]
Counted = dict[Key, dict[str, Any]]


def quarter(at: datetime) -> datetime:
    """Return the start of the quarter of an hour that contains `at`."""
    return at.replace(minute=at.minute // 15 * 15, second=0, microsecond=0)


def day(zone: str) -> Callable[[datetime], Any]:
    """Return a function from a time to its day in a time zone."""
    return lambda at: at.astimezone(ZoneInfo(zone)).date()


def recount(url: str, place: Callable[[datetime], Any]) -> tuple[Counted, Counted, Counted]:
    """Return the rollups of agents, models and tools, counted from the rows, by agent and by the period that `place` gives for a time."""
    agents: dict[Key, Sums] = defaultdict(Sums)
    models: dict[Key, Sums] = defaultdict(Sums)
    tools: dict[Key, Sums] = defaultdict(Sums)
    with psycopg.connect(url, row_factory=namedtuple_row) as db:
        sessions = {row.id: row for row in _rows(db, "SELECT * FROM sessions")}
        for row in sessions.values():
            _session(agents[row.agent_id, place(row.started_at)].numbers, row)
            if row.status == "completed":
                ended = agents[row.agent_id, place(row.ended_at)].numbers
                ended["sessions_completed"] += 1
                ended["durations"] += 1
                ended["duration_s"] += (row.ended_at - row.started_at) // timedelta(seconds=1)
            elif row.status == "abandoned":
                agents[row.agent_id, place(row.ended_at)].numbers["sessions_abandoned"] += 1
        for row in _rows(db, "SELECT * FROM events WHERE kind IN ('customer_message', 'agent_message')"):
            agents[sessions[row.session_id].agent_id, place(row.created_at)].numbers["messages"] += 1
        for row in _rows(db, "SELECT * FROM turns WHERE settled_at IS NOT NULL"):
            _turn(agents[sessions[row.session_id].agent_id, place(row.settled_at)], row)
        for row in _rows(db, "SELECT * FROM model_calls WHERE state <> 'reserved'"):
            _model_call(models[sessions[row.session_id].agent_id, place(row.settled_at), row.provider, row.model], row)
        for row in _rows(db, "SELECT * FROM tool_calls"):
            if row.state in ENDED:
                called = tools[sessions[row.session_id].agent_id, place(row.settled_at), row.tool_id or NIL]
                called.numbers.update({"calls": 1, f"{row.state}_calls": 1})
                if row.state in ("succeeded", "failed") and row.latency_ms is not None:
                    called.times["latencies"].append(row.latency_ms)
    return _plain(agents), _plain(models), _plain(tools)


def rolled_up(url: str, grain: str, place: str = "start") -> tuple[Counted, Counted, Counted]:
    """Return the same from the rollup tables; `place` is SQL."""
    return (
        _rolled(url, "agent_rollups", grain, place),
        _rolled(url, "model_rollups", grain, place, "provider", "model"),
        _rolled(url, "tool_rollups", grain, place, "tool_id"),
    )


def _rows(db: psycopg.Connection[Any], query: str) -> Iterable[Any]:
    """Return rows with their columns as attributes, typed Any because the row type does not name them."""
    return db.execute(query)


def _plain(counted: dict[Key, Sums]) -> Counted:
    return {key: plain for key, sums in counted.items() if (plain := sums.plain())}


def _rolled(url: str, table: str, grain: str, place: str, *by: str) -> Counted:
    found: Counted = {}
    with psycopg.connect(url, row_factory=psycopg.rows.dict_row) as db:
        db.execute("SET TIME ZONE 'UTC'")
        keys = "workspace_id,agent_id,grain,start,provider,model,tool_id,last_active_at,last_used_at,timezone,days_cut_to,folded"
        columns = f"to_jsonb(r) - '{{{keys}}}'::text[]"
        names = ", ".join(("agent_id", f"{place} AS place", *by))
        query = f"SELECT {names}, {columns} AS sums FROM {table} r WHERE grain = %s"
        for row in db.execute(query, [grain]):
            sums: dict[str, Any] = {}
            for name, value in row.pop("sums").items():
                if value and isinstance(value, dict):
                    sums[name] = {int(bucket): int(count) for bucket, count in sorted(value.items(), key=lambda one: int(one[0]))}
                elif value:
                    sums[name] = Decimal(str(value))
            if sums:
                found[tuple(row.values())] = sums
    return found


def _session(numbers: Counter[str], row: Any) -> None:
    numbers["sessions_started"] += 1
    numbers["active_sessions"] += row.status == "active"
    numbers["cohort_completed"] += row.status == "completed"
    numbers["cohort_abandoned"] += row.status == "abandoned"
    numbers["cohort_messages"] += row.message_count
    numbers["cohort_tokens"] += row.tokens_used
    numbers["cohort_cost_usd"] += row.cost_usd
    numbers["cohort_satisfaction"] += row.satisfaction_score or 0
    numbers["cohort_rated"] += row.satisfaction_score is not None


def _turn(sums: Sums, row: Any) -> None:
    sums.numbers[f"turns_{row.status}"] += 1
    if row.status == "done":
        took_ms = (row.settled_at - row.opened_at) // timedelta(milliseconds=1)
        sums.numbers["response_ms"] += took_ms
        sums.times["response_times"].append(took_ms)
    if row.started_at is not None:
        sums.times["wait_times"].append((row.started_at - row.opened_at) // timedelta(milliseconds=1))
    sums.times["work_times"].append(int(row.running_s * 1000))


def _model_call(sums: Sums, row: Any) -> None:
    sums.numbers.update({"calls": 1, f"{row.state}_calls": 1, "unpriced_calls": row.state == "settled" and row.cost_usd is None})
    for kind in ("input", "cached_input", "cache_write", "output", "reasoning"):
        sums.numbers[f"{kind}_tokens"] += getattr(row, f"{kind}_tokens")
    sums.numbers["cost_usd"] += row.cost_usd or 0
    if row.state == "settled":
        for name, time in (("latencies", row.latency_ms), ("first_token_times", row.ttft_ms)):
            if time is not None:
                sums.times[name].append(time)
