"""Turnline and the floor, side by side, in one go: scenarios A, B and C.

    python -m benchmarks.turns [--scenario A,B,C] [--turns N]

A: 1,000 turns over 200 sessions at once, a model that answers at once. B: 1,000 turns over 1,000 sessions at once, 1,000 ms a model call.
C: 10 turns a second, nothing else to do. Each turn is a message, a model call that asks for a tool, the tool, and a model call that
answers. Two worker processes. The figures of a run are printed only after its books were checked.
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
    """What is asked of both."""

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
    """What one system did in one scenario; CPU in ms per turn, latencies in ms."""

    system: str
    turns_per_s: float
    ours: float
    intake: float
    postgres: float
    broker: float
    p50: float
    p99: float
    memory_mb: float


def text_of(scenario: Scenario, number: int) -> str:
    """A message whose answer needs the tool."""
    latency = f" [[latency {scenario.latency_ms}]]" if scenario.latency_ms else ""
    return f"Is order {number} paid?{latency}"


async def submit(stack: Stack, made: Tenant, sessions: list[UUID], texts: list[str], rate: float | None) -> float:
    """Accept `texts`, one after another round the sessions, as the front door does; returns the CPU seconds it took."""
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
    """Run the scenario on Turnline, check the books, and return the figures."""
    with rig(TURNLINE_TURN_LEASE_S="30", TURNLINE_TURN_HEARTBEAT_S="10", TURNLINE_RING_STALE_S="10", TURNLINE_SWEEP_EVERY_S="5",
             TURNLINE_DB_POOL_SIZE="10", TURNLINE_LOG_LEVEL="WARNING") as (stack, postgres, valkey):  # fmt: skip
        workers = [stack.worker(concurrency=1000, queues="turns,messages,tools", wait=False) for _ in range(WORKERS)]
        until(lambda: connected(stack) >= WORKERS, 60)

        async def prepared() -> Tenant:
            database = Database(stack.database_url, pool_size=2)
            await database.open()
            integration = {"configuration": {"url": f"{stack.sandbox_url}/tools/orders_lookup"}}
            made = await tenant(
                database, sessions=scenario.sessions + WARM_UP, strategy="enqueue", tools=({**TOOL, "integration": integration},)
            )
            await database.close()
            return made

        made = asyncio.run(prepared())
        warm, sessions = made.session_ids[:WARM_UP], made.session_ids[WARM_UP:]
        asyncio.run(submit(stack, made, warm, ["Is order 1 paid?"] * WARM_UP, None))
        stack.drained(60)

        assert postgres.pid is not None
        assert valkey.pid is not None
        pids = {"ours": [worker.popen.pid for worker in workers], "postgres": [postgres.pid], "broker": [valkey.pid]}
        before = {who: cpu_s(ids) for who, ids in pids.items()}
        began = datetime.now(UTC)
        intake = asyncio.run(submit(stack, made, sessions, [text_of(scenario, n) for n in range(scenario.turns)], scenario.rate))
        stack.drained(180)
        used = {who: cpu_s(ids) - before[who] for who, ids in pids.items()}
        memory = memory_mb(pids["ours"])
        rows = stack.rows(
            "SELECT extract(epoch FROM settled_at - opened_at) * 1000, settled_at, status FROM turns WHERE opened_at >= %s", began
        )
        check(stack, rows, scenario)
        seconds = (max(row[1] for row in rows) - began).total_seconds()
        took = [float(row[0]) for row in rows]
        per_turn = 1000 / scenario.turns
        return Figures("Turnline", scenario.turns / seconds, used["ours"] * per_turn, intake * per_turn, used["postgres"] * per_turn,
                       used["broker"] * per_turn, percentile(took, 0.5), percentile(took, 0.99), memory)  # fmt: skip


def check(stack: Stack, rows: list[tuple[Any, ...]], scenario: Scenario) -> None:
    """Raises SystemExit where a message was not answered once or the books do not close."""
    found = violations(stack.database_url)
    done = sum(status == "done" for _, _, status in rows)
    if found or done != scenario.turns or stack.counts()["bad_requests"]:
        raise SystemExit(f"scenario {scenario.name}: {done} of {scenario.turns} answered; violations: {found}\n{stack.tails()}")


def measure_floor(scenario: Scenario) -> Figures:
    """Run the scenario on the floor and return the figures."""
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
            raise SystemExit(f"the floor lost something: {events} events of {scenario.turns * 4}")
        took = [one * 1000 for one in done["took_s"]]
        per_turn = 1000 / scenario.turns
        return Figures("floor", scenario.turns / done["seconds"], done["cpu_s"] * per_turn, 0.0, used * per_turn, 0.0,
                       percentile(took, 0.5), percentile(took, 0.99), memory)  # fmt: skip


def main() -> None:
    """Run and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--scenario", default="A,B,C")
    arguments.add_argument("--turns", type=int, help="fewer turns than the scenario says")
    given = arguments.parse_args()
    console = Console(width=max(120, Console().width))
    console.print(f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, Python {platform.python_version()}, {WORKERS} worker processes")
    table = Table(title="Turnline and the floor; CPU in ms per turn, latency in ms")
    for column in (
        "",
        "system",
        "turns/s",
        "of the floor",
        "CPU workers",
        "CPU intake",
        "CPU broker",
        "CPU Postgres",
        "p50",
        "p99",
        "memory MB",
    ):
        table.add_column(column, justify="left" if column in ("", "system") else "right")
    for name in given.scenario.split(","):
        scenario = SCENARIOS[name]
        if given.turns:
            scenario = Scenario(name, given.turns, min(scenario.sessions, given.turns), scenario.latency_ms, scenario.rate)
        floor = measure_floor(scenario)
        for figures in (floor, measure_turnline(scenario)):
            table.add_row(
                name, figures.system, f"{figures.turns_per_s:.0f}", f"{figures.turns_per_s / floor.turns_per_s:.2f}", f"{figures.ours:.2f}",
                f"{figures.intake:.2f}", f"{figures.broker:.2f}", f"{figures.postgres:.2f}", f"{figures.p50:.1f}", f"{figures.p99:.1f}",
                f"{figures.memory_mb:.0f}",
            )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    main()
