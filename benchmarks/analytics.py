"""What analytics cost: 100,000 turns into the rollups, a run every thirty seconds, an answer over HTTP, and what noting costs a turn.

python -m benchmarks.analytics [--turns N]      prints one table; `make analytics-bench`
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
NOTED = ("sessions", "turns", "model_calls", "tool_calls")
# Ten turns a session, two model calls and one tool call a turn, over thirty days and ten agents.
PLANT = (
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
# The documents' query, and the percentiles beside it, from the rows themselves.
RECOUNT = """SELECT (started_at AT TIME ZONE 'UTC')::date, count(*), avg(message_count), sum(cost_usd),
    100.0 * count(*) FILTER (WHERE status = 'completed') / count(*) FROM sessions WHERE agent_id = %s GROUP BY 1"""
TIMES = """SELECT (t.settled_at AT TIME ZONE 'UTC')::date, count(*),
    percentile_disc(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY t.settled_at - t.opened_at)
    FROM turns t JOIN sessions s ON s.id = t.session_id WHERE s.agent_id = %s AND t.status = 'done' GROUP BY 1"""
SPENT = """SELECT (m.settled_at AT TIME ZONE 'UTC')::date, m.model, count(*), sum(m.input_tokens), sum(m.cost_usd)
    FROM model_calls m JOIN sessions s ON s.id = m.session_id WHERE s.agent_id = %s GROUP BY 1, 2"""


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    """Seconds that `work` takes."""
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


async def measure(url: str, turns: int) -> list[tuple[str, str]]:
    """The table's rows, on an empty database."""
    database, maintenance = Database(url, pool_size=4), Database(url, role=MAINTENANCE_ROLE, pool_size=4)
    await database.open()
    await maintenance.open()
    made = await tenant(database, sessions=0, tools=({"name": "lookup"},))
    agents = [made.agent_id] + [(await tenant(database, sessions=0, workspace_id=made.workspace_id)).agent_id for _ in range(9)]
    noted, bare = planted(url, made, agents, turns)
    facts = (await rollups.to_come(maintenance))["facts"]
    told = [(f"planting {turns:,} turns in bulk, noting every change / noting none", f"{noted:.1f} s / {bare:.1f} s")]
    told.append((f"noting, of each turn's {facts / turns:.1f} changes", f"{(noted - bare) / turns * 1e6:.0f} µs"))
    whole = await timed(lambda: rollups.add(maintenance))
    told.append((f"adding {facts:,} facts to empty rollups", f"{whole:.1f} s, {facts / whole:,.0f} facts/s, {turns / whole:,.0f} turns/s"))
    folded = await timed(lambda: totals.fold(maintenance))
    told.append(("folding the totals of 10 agents and a tool", f"{folded * 1000:.0f} ms"))
    told.append(("a run with nothing to do", f"{await timed(lambda: rollups.add(maintenance)) * 1000:.1f} ms"))
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("VACUUM ANALYZE usage_facts, agent_rollups, model_rollups, tool_rollups")  # as autovacuum does within a minute
        db.execute("UPDATE sessions SET message_count = message_count + 1 WHERE id IN (SELECT id FROM sessions ORDER BY id DESC LIMIT 300)")
    answer = Days(datetime.now(UTC).date().replace(day=1), datetime.now(UTC).date())

    async def asked() -> None:
        async with queries.snapshot(database, made.workspace_id) as db:
            await queries.step_by_step(db, made.workspace_id, agents[0], answer)
            await queries.in_all(db, made.workspace_id, agents[0], answer)

    told.append(("days and sums of an agent, 300 facts not added yet", f"{await median_ms(asked):.1f} ms"))
    told.append(("adding those 300 facts, and folding", f"{await timed(lambda: both(maintenance)) * 1000:.0f} ms"))
    told.append(("days and sums of an agent, from the rollups", f"{await median_ms(asked):.1f} ms"))
    told.append(("the same from the rows, in three plain queries", f"{await median_ms(lambda: recounted(url, agents[0])):.1f} ms"))
    await database.close()
    await maintenance.close()
    return told


async def both(maintenance: Database) -> None:
    """What the scheduled task does."""
    await rollups.add(maintenance)
    await totals.fold(maintenance)


def planted(url: str, made: Tenant, agents: list[UUID], turns: int) -> tuple[float, float]:
    """Plant the turns, once noted and once not; seconds of each. The first ones stay."""
    given = {"w": made.workspace_id, "agents": agents, "turns": turns, "seconds": DAYS * 86_400}
    took = []
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("SET jit = off")
        for noting in ("DISABLE", "ENABLE"):
            db.execute("TRUNCATE sessions, turns, model_calls, tool_calls, events, usage_facts CASCADE")
            for table in NOTED:
                db.execute(f"ALTER TABLE {table} {noting} TRIGGER USER")
            began = time.perf_counter()
            for statement in PLANT:
                db.execute(statement, given)
            took.append(time.perf_counter() - began)
        db.execute("ANALYZE")
    return took[1], took[0]


async def recounted(url: str, agent: UUID) -> None:
    """The same days from the rows."""
    with psycopg.connect(url) as db:
        for query in (RECOUNT, TIMES, SPENT):
            db.execute(query, [agent]).fetchall()


async def median_ms(work: Callable[[], Awaitable[object]], times: int = 15) -> float:
    """Milliseconds that `work` takes, the median."""
    await work()
    return statistics.median([await timed(work) for _ in range(times)]) * 1000


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=100_000)
    turns = parser.parse_args().turns
    with scratch_directory("turnline-analytics-") as directory, EmbeddedPostgres(Path(directory) / "postgres", fast=True) as server:
        url = server.url_of("postgres")
        migrate.upgrade(url)
        rows = asyncio.run(measure(url, turns))
    table = Table("WHAT", "TOOK", title=f"Analytics, {datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, Postgres with fsync off", box=None)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
