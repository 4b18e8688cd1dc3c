"""Measure the cost of analytics: recording facts per turn, rolling up 100,000 turns, and answering a query.

python -m benchmarks.analytics [--turns N]      (`make analytics-bench`)
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import statistics
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import psycopg
from rich.console import Console
from rich.table import Table

from cli.standalone.servers import EmbeddedPostgres
from cli.standalone.unprivileged import scratch_directory
from store import migrate
from store.analytics import queries, rollups, totals
from store.analytics.queries import Days
from store.database import MAINTENANCE_ROLE, Database
from tests.support.factories import Tenant, tenant

DAYS = 30
RECORDED_TABLES = ("sessions", "turns", "model_calls", "tool_calls")
# Ten turns per session, two model calls and one tool call per turn, over thirty days and ten agents.
INSERTS = (
    """INSERT INTO sessions (id, workspace_id, agent_id, started_at, last_activity_at)
    SELECT md5('s' || n)::uuid, %(w)s, (%(agents)s::uuid[])[1 + n %% 10], at, at FROM generate_series(1, %(turns)s / 10) n,
    LATERAL (SELECT now() - make_interval(secs => %(seconds)s * n::float / (%(turns)s / 10)) AS at) x""",
    """INSERT INTO turns (id, workspace_id, session_id, status, opened_at_offset, opened_at, started_at, settled_at, running_s)
    SELECT md5('t' || n)::uuid, %(w)s, s.id, CASE WHEN n %% 50 = 0 THEN 'dead' ELSE 'done' END, n, s.started_at,
        s.started_at + interval '20 ms', s.started_at + make_interval(secs => 1 + n %% 977 / 100.0), 1
    FROM generate_series(0, %(turns)s - 1) n JOIN sessions s ON s.id = md5('s' || (1 + n / 10))::uuid""",
    """INSERT INTO model_calls (turn_id, step, attempt, workspace_id, session_id, provider, model, state, input_tokens, output_tokens,
        cost_usd, latency_ms, ttft_ms, settled_at)
    SELECT id, step, 0, workspace_id, session_id, 'openai', 'gpt-4o', 'settled', 900, 100, 0.00325, 400 + opened_at_offset %% 3000, 90,
        settled_at
    FROM turns, generate_series(0, 1) step""",
    """INSERT INTO tool_calls (session_id, tool_call_id, workspace_id, turn_id, step, position, tool_id, tool_name, state, arguments_hash,
        idempotency_key, latency_ms, settled_at)
    SELECT session_id, id::text, workspace_id, id, 0, 0, (SELECT id FROM tools LIMIT 1), 'lookup', 'succeeded', '', id::text, 30, settled_at
    FROM turns""",
    "UPDATE sessions SET message_count = 20, tokens_used = 20000, cost_usd = 0.065",
)
# The same figures from the rows: sessions per day, percentiles of reply times, and model usage.
SESSIONS_PER_DAY = """SELECT (started_at AT TIME ZONE 'UTC')::date, count(*), avg(message_count), sum(cost_usd),
    100.0 * count(*) FILTER (WHERE status = 'completed') / count(*) FROM sessions WHERE agent_id = %s GROUP BY 1"""
REPLY_TIMES = """SELECT (t.settled_at AT TIME ZONE 'UTC')::date, count(*),
    percentile_disc(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY t.settled_at - t.opened_at)
    FROM turns t JOIN sessions s ON s.id = t.session_id WHERE s.agent_id = %s AND t.status = 'done' GROUP BY 1"""
MODEL_USAGE = """SELECT (m.settled_at AT TIME ZONE 'UTC')::date, m.model, count(*), sum(m.input_tokens), sum(m.cost_usd)
    FROM model_calls m JOIN sessions s ON s.id = m.session_id WHERE s.agent_id = %s GROUP BY 1, 2"""


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    """Return the seconds that `work` takes."""
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


async def measure(url: str, turns: int) -> list[tuple[str, str]]:
    """Return the table's rows, measured on an empty database."""
    database, maintenance = Database(url, pool_size=4), Database(url, role=MAINTENANCE_ROLE, pool_size=4)
    await database.open()
    await maintenance.open()
    made = await tenant(database, sessions=0, tools=({"name": "lookup"},))
    agents = [made.agent_id] + [(await tenant(database, sessions=0, workspace_id=made.workspace_id)).agent_id for _ in range(9)]
    recorded_s, bare_s = insert_turns(url, made, agents, turns)
    facts = (await rollups.to_come(maintenance))["facts"]
    rows = [(f"bulk insert of {turns:,} turns, with / without recording facts", f"{recorded_s:.1f} s / {bare_s:.1f} s")]
    rows.append((f"recording a turn's {facts / turns:.1f} facts", f"{(recorded_s - bare_s) / turns * 1e6:.0f} µs"))
    rollup_s = await timed(lambda: rollups.add(maintenance))
    rows.append((f"rolling up {facts:,} facts", f"{rollup_s:.1f} s, {facts / rollup_s:,.0f} facts/s, {turns / rollup_s:,.0f} turns/s"))
    totals_s = await timed(lambda: totals.fold(maintenance))
    rows.append(("updating the totals of 10 agents and a tool", f"{totals_s * 1000:.0f} ms"))
    rows.append(("a rollup with no new facts", f"{await timed(lambda: rollups.add(maintenance)) * 1000:.1f} ms"))
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("VACUUM ANALYZE usage_facts, agent_rollups, model_rollups, tool_rollups")  # as autovacuum does within a minute
        db.execute("UPDATE sessions SET message_count = message_count + 1 WHERE id IN (SELECT id FROM sessions ORDER BY id DESC LIMIT 300)")
    days = Days(datetime.now(UTC).date().replace(day=1), datetime.now(UTC).date())

    async def query() -> None:
        async with queries.snapshot(database, made.workspace_id) as db:
            await queries.step_by_step(db, made.workspace_id, agents[0], days)
            await queries.in_all(db, made.workspace_id, agents[0], days)

    rows.append(("query of an agent's days and sums, 300 facts not rolled up", f"{await median_ms(query):.1f} ms"))
    rows.append(("rolling up those 300 facts and updating totals", f"{await timed(lambda: roll_up(maintenance)) * 1000:.0f} ms"))
    rows.append(("query of an agent's days and sums, all rolled up", f"{await median_ms(query):.1f} ms"))
    rows.append(("the same from the rows, in three plain queries", f"{await median_ms(lambda: query_rows(url, agents[0])):.1f} ms"))
    await database.close()
    await maintenance.close()
    return rows


async def roll_up(maintenance: Database) -> None:
    """Do what the scheduled task does: roll up, then update totals."""
    await rollups.add(maintenance)
    await totals.fold(maintenance)


def insert_turns(url: str, made: Tenant, agents: list[UUID], turns: int) -> tuple[float, float]:
    """Insert the turns without and then with recording of facts; return the seconds (with, without). The last ones stay."""
    values = {"w": made.workspace_id, "agents": agents, "turns": turns, "seconds": DAYS * 86_400}
    seconds = []
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("SET jit = off")
        for trigger_state in ("DISABLE", "ENABLE"):
            db.execute("TRUNCATE sessions, turns, model_calls, tool_calls, events, usage_facts CASCADE")
            for table in RECORDED_TABLES:
                db.execute(f"ALTER TABLE {table} {trigger_state} TRIGGER USER")
            began = time.perf_counter()
            for statement in INSERTS:
                db.execute(statement, values)
            seconds.append(time.perf_counter() - began)
        db.execute("ANALYZE")
    return seconds[1], seconds[0]


async def query_rows(url: str, agent: UUID) -> None:
    """Query the same figures from the rows."""
    with psycopg.connect(url) as db:
        for query in (SESSIONS_PER_DAY, REPLY_TIMES, MODEL_USAGE):
            db.execute(query, [agent]).fetchall()


async def median_ms(work: Callable[[], Awaitable[object]], times: int = 15) -> float:
    """Return the median milliseconds that `work` takes."""
    await work()
    return statistics.median([await timed(work) for _ in range(times)]) * 1000


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=100_000)
    turns = parser.parse_args().turns
    with scratch_directory("turnline-analytics-") as directory, EmbeddedPostgres(Path(directory) / "postgres", fast=True) as server:
        url = server.url_of("postgres")
        migrate.upgrade(url)
        rows = asyncio.run(measure(url, turns))
    table = Table(
        "operation", "time", title=f"Analytics, {datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, Postgres with fsync off", box=None
    )
    for row in rows:
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
