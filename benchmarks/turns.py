"""Measure throughput, latency and CPU per turn, compared with the baseline `benchmarks.floor`, in three scenarios.

    python -m benchmarks.turns [--scenario A,B,C] [--turns N]      (part of `make bench`)

A: 1,000 turns at once in 200 sessions, with a model that answers at once. B: 1,000 turns at once in 1,000 sessions, 1,000 ms per model
call. C: 10 turns per second. Each turn is a message, a model call that requests a tool, the tool call, and a model call that answers. Two
worker processes. The figures of a run are printed only if every message was answered and no invariant is violated.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from rich.console import Console
from rich.table import Table

from benchmarks.chaos import connected
from benchmarks.rig import cpu_s, memory_mb, percentile, rig
from settings import Settings
from store.conversations import intake
from store.database import Database
from tasks.celery_app import make_app
from tasks.dispatcher import Dispatcher
from tests.support.factories import Tenant, tenant
from tests.support.invariants import violations
from tests.support.servers import ROOT, until
from tests.support.stack import TOOL, Stack


@dataclass(frozen=True)
class Scenario:
    """The load for both systems; `rate` is in turns per second, None for all at once."""

    name: str
    turns: int
    sessions: int
    latency_ms: int
    rate: float | None


SCENARIOS = {
    "A": Scenario("A", 1000, 200, 0, None),
    "B": Scenario("B", 1000, 1000, 1000, None),
    "C": Scenario("C", 100, 100, 0, 10.0),
}
WARM_UP = 40
WORKERS = 2


@dataclass
class Figures:
    """Results of one system in one scenario. CPU in ms per turn, latencies in ms."""

    system: str
    turns_per_s: float
    workers: float
    intake: float
    postgres: float
    broker: float
    p50: float
    p99: float
    memory_mb: float


def text_of(scenario: Scenario, number: int) -> str:
    """Return a message that makes the model call the tool."""
    latency = f" [[latency {scenario.latency_ms}]]" if scenario.latency_ms else ""
    return f"Is order {number} paid?{latency}"


async def submit(stack: Stack, made: Tenant, sessions: list[UUID], texts: list[str], rate: float | None) -> float:
    """Accept and dispatch `texts`, spread over the sessions, as the API does; return the CPU seconds used."""
    database = Database(stack.database_url, pool_size=20)
    await database.open()
    app = make_app(Settings(DATABASE_URL=stack.database_url, CELERY_BROKER_URL=stack.broker_url))
    dispatcher = Dispatcher(app, stack.database_url)
    dispatcher.start()
    began, cpu = time.monotonic(), time.process_time()

    async def one(number: int, text: str) -> None:
        if rate:
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
        accepted = await intake.accept(database, made.workspace_id, sessions[number % len(sessions)], text)
        if accepted.to_dispatch and accepted.turn_id:
            dispatcher.dispatch(accepted.turn_id)

    await asyncio.gather(*(one(number, text) for number, text in enumerate(texts)))
    await asyncio.to_thread(dispatcher.close)
    cpu = time.process_time() - cpu
    await database.close()
    app.close()
    return cpu


def measure_turnline(scenario: Scenario) -> Figures:
    """Run the scenario on Turnline, verify the data, and return the figures."""
    with rig(TURNLINE_TURN_LEASE_S="30", TURNLINE_TURN_HEARTBEAT_S="10", TURNLINE_RING_STALE_S="10", TURNLINE_SWEEP_EVERY_S="5",
             TURNLINE_DB_POOL_SIZE="10", TURNLINE_LOG_LEVEL="WARNING") as (stack, postgres, valkey):  # fmt: skip
        workers = [stack.worker(concurrency=1000, queues="turns,messages,tools", wait=False) for _ in range(WORKERS)]
        until(lambda: connected(stack) >= WORKERS, 60)

        async def prepare() -> Tenant:
            database = Database(stack.database_url, pool_size=2)
            await database.open()
            integration = {"configuration": {"url": f"{stack.sandbox_url}/tools/orders_lookup"}}
            made = await tenant(
                database, sessions=scenario.sessions + WARM_UP, strategy="enqueue", tools=({**TOOL, "integration": integration},)
            )
            await database.close()
            return made

        made = asyncio.run(prepare())
        warm_up, sessions = made.session_ids[:WARM_UP], made.session_ids[WARM_UP:]
        asyncio.run(submit(stack, made, warm_up, ["Is order 1 paid?"] * WARM_UP, None))
        stack.drained(60)

        assert postgres.pid is not None
        assert valkey.pid is not None
        pids = {"workers": [worker.popen.pid for worker in workers], "postgres": [postgres.pid], "broker": [valkey.pid]}
        before = {name: cpu_s(ids) for name, ids in pids.items()}
        began = datetime.now(UTC)
        intake = asyncio.run(submit(stack, made, sessions, [text_of(scenario, n) for n in range(scenario.turns)], scenario.rate))
        stack.drained(180)
        used = {name: cpu_s(ids) - before[name] for name, ids in pids.items()}
        memory = memory_mb(pids["workers"])
        rows = stack.rows(
            "SELECT extract(epoch FROM settled_at - opened_at) * 1000, settled_at, status FROM turns WHERE opened_at >= %s", began
        )
        check(stack, rows, scenario)
        seconds = (max(row[1] for row in rows) - began).total_seconds()
        latencies_ms = [float(row[0]) for row in rows]
        per_turn = 1000 / scenario.turns
        return Figures("Turnline", scenario.turns / seconds, used["workers"] * per_turn, intake * per_turn, used["postgres"] * per_turn,
                       used["broker"] * per_turn, percentile(latencies_ms, 0.5), percentile(latencies_ms, 0.99), memory)  # fmt: skip


def check(stack: Stack, rows: list[tuple[Any, ...]], scenario: Scenario) -> None:
    """Raise SystemExit if a message was not answered exactly once or an invariant is violated."""
    found = violations(stack.database_url)
    done = sum(status == "done" for _, _, status in rows)
    if found or done != scenario.turns or stack.counts()["bad_requests"]:
        raise SystemExit(f"scenario {scenario.name}: {done} of {scenario.turns} answered; violations: {found}\n{stack.tails()}")


def measure_floor(scenario: Scenario) -> Figures:
    """Run the scenario on the baseline and return the figures."""
    with rig() as (stack, postgres, _):
        job = {
            "database_url": stack.database_url,
            "sandbox_url": stack.sandbox_url,
            "tool": {key: TOOL[key] for key in ("name", "description", "parameters")},
            "turns": [[f"s{n % scenario.sessions}", text_of(scenario, n)] for n in range(scenario.turns)],
            "rate": scenario.rate,
        }
        path = stack.directory / "job.json"
        path.write_text(json.dumps(job))
        floor = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.floor", str(path)],
            cwd=ROOT,
            env=stack.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert floor.stdin is not None
        assert floor.stdout is not None
        assert floor.stdout.readline() == "READY\n"
        assert postgres.pid is not None
        before = cpu_s([postgres.pid])
        floor.stdin.write("go\n")
        floor.stdin.flush()
        done = json.loads(floor.stdout.readline())
        used = cpu_s([postgres.pid]) - before
        memory = memory_mb([floor.pid])
        floor.stdin.write("end\n")
        floor.stdin.close()
        floor.wait(30)
        events = stack.one("SELECT count(*) FROM floor.events WHERE session_id <> 'warm'")
        if events != scenario.turns * 4:
            raise SystemExit(f"the baseline wrote {events} of {scenario.turns * 4} events")
        latencies_ms = [one * 1000 for one in done["took_s"]]
        per_turn = 1000 / scenario.turns
        return Figures("baseline", scenario.turns / done["seconds"], done["cpu_s"] * per_turn, 0.0, used * per_turn, 0.0,
                       percentile(latencies_ms, 0.5), percentile(latencies_ms, 0.99), memory)  # fmt: skip


def main() -> None:
    """Measure and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--scenario", default="A,B,C")
    arguments.add_argument("--turns", type=int, help="number of turns, instead of the scenario's")
    options = arguments.parse_args()
    console = Console(width=max(120, Console().width))
    console.print(f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, Python {platform.python_version()}, {WORKERS} worker processes")
    table = Table(title="Turnline and the baseline; CPU in ms per turn, latency in ms")
    for column in (
        "scenario",
        "system",
        "turns/s",
        "relative to baseline",
        "CPU of workers",
        "CPU of intake",
        "CPU of broker",
        "CPU of Postgres",
        "p50",
        "p99",
        "memory MB",
    ):
        table.add_column(column, justify="left" if column in ("scenario", "system") else "right")
    for name in options.scenario.split(","):
        scenario = SCENARIOS[name]
        if options.turns:
            scenario = Scenario(name, options.turns, min(scenario.sessions, options.turns), scenario.latency_ms, scenario.rate)
        floor = measure_floor(scenario)
        for figures in (floor, measure_turnline(scenario)):
            table.add_row(
                name,
                figures.system,
                f"{figures.turns_per_s:.0f}",
                f"{figures.turns_per_s / floor.turns_per_s:.2f}",
                *(f"{cpu_ms:.2f}" for cpu_ms in (figures.workers, figures.intake, figures.broker, figures.postgres)),
                f"{figures.p50:.1f}",
                f"{figures.p99:.1f}",
                f"{figures.memory_mb:.0f}",
            )
    console.print(table)


if __name__ == "__main__":
    main()
