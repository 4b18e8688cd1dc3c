"""Measure fairness between workspaces: a quiet workspace's reply times, alone and beside 10,000 queued messages of another.

    python -m benchmarks.fairness [--flood 10000] [--sessions 2000] [--latency 300] [--every 0.5] [--samples 80] [--window N]

The quiet workspace sends a message every half second over HTTP, each in a new session, and waits for its reply. The flood is queued
before the workers start. Each turn is a model call that requests a tool, the tool call, and a model call that answers. Two worker
processes. The figures are printed only if every message of both workspaces was answered and no invariant is violated.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import platform
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from httpx_aiohttp import HttpxAiohttpClient
from rich.console import Console
from rich.table import Table

from benchmarks.chaos import connected
from benchmarks.rig import percentile, rig
from settings import Settings
from store.catalog import workspaces
from store.conversations import intake
from store.database import Database
from tasks.celery_app import make_app
from tasks.dispatcher import Dispatcher
from tests.support.factories import Tenant, tenant
from tests.support.invariants import violations
from tests.support.servers import free_port, until
from tests.support.stack import TOOL, Process, Stack

WORKERS = 2
WARM_UP = 10
CONCURRENT_INTAKES = 16
MAX_RATIO = 3.0
REPLY_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Load:
    """The load: messages and sessions of the flood, the model's latency, and the messages of the quiet workspace.

    `every_s` is the time between two messages of the quiet workspace. `in_flight_limit` is TURNLINE_WORKSPACE_IN_FLIGHT.
    """

    flood: int
    sessions: int
    latency_ms: int
    every_s: float
    samples: int
    in_flight_limit: int


@dataclass
class Figures:
    """The results. Latencies of the quiet workspace are in seconds, in the order sent."""

    alone_s: list[float]
    beside_flood_s: list[float]
    queued_before: int
    queued_after: int
    flood_s: float

    @property
    def ratio(self) -> float:
        """The quiet workspace's p95 beside the flood divided by its p95 alone."""
        return percentile(self.beside_flood_s, 0.95) / percentile(self.alone_s, 0.95)


@dataclass(frozen=True)
class Quiet:
    """The quiet workspace, with one new session per message."""

    api_key: str
    workspace_id: UUID
    sessions: list[UUID]


def text_of(load: Load, number: int) -> str:
    """Return a message that makes the model call the tool."""
    return f"Is order {number} paid? [[latency {load.latency_ms}]]"


async def _prepare(stack: Stack, load: Load) -> tuple[Tenant, Quiet]:
    database = Database(stack.database_url, pool_size=2)
    await database.open()
    tools = ({**TOOL, "integration": {"configuration": {"url": f"{stack.sandbox_url}/tools/orders_lookup"}}},)
    flood = await tenant(database, sessions=load.sessions, strategy="enqueue", tools=tools)
    created = await workspaces.create(database, "Quiet")
    made = await tenant(database, workspace_id=created.workspace_id, sessions=WARM_UP + 2 * load.samples, tools=tools)
    await database.close()
    return flood, Quiet(created.api_key, created.workspace_id, made.session_ids)


async def _converse(url: str, quiet: Quiet, sessions: list[UUID], load: Load) -> list[float]:
    """Send one message to each session, `load.every_s` apart; return the seconds until each reply, as a client sees them."""
    async with HttpxAiohttpClient(base_url=url, headers={"Authorization": f"Bearer {quiet.api_key}"}, timeout=60) as client:

        async def one(index: int, session_id: UUID) -> float:
            await asyncio.sleep(index * load.every_s)
            began = time.monotonic()
            reply = await client.post(f"/v1/sessions/{session_id}/messages", json={"text": text_of(load, index)})
            if reply.status_code != 202:
                raise SystemExit(f"the quiet workspace's message was answered {reply.status_code}: {reply.text}")
            while time.monotonic() < began + REPLY_TIMEOUT_S:
                found = await client.get(f"/v1/sessions/{session_id}/events", params={"after": 0, "kind": "agent_message", "wait": 20})
                if found.status_code == 200 and found.json()["events"]:
                    return time.monotonic() - began
            raise SystemExit(f"a message of the quiet workspace was not answered within {REPLY_TIMEOUT_S:.0f} s")

        return list(await asyncio.gather(*(one(index, session_id) for index, session_id in enumerate(sessions))))


async def _flood(stack: Stack, made: Tenant, load: Load) -> None:
    """Accept and dispatch the flood, as the API does."""
    database = Database(stack.database_url, pool_size=CONCURRENT_INTAKES)
    await database.open()
    app = make_app(Settings(DATABASE_URL=stack.database_url, CELERY_BROKER_URL=stack.broker_url))
    dispatcher = Dispatcher(app, stack.database_url)
    dispatcher.start()
    numbers = itertools.count()

    async def accept_some() -> None:
        while (number := next(numbers)) < load.flood:
            session_id = made.session_ids[number % load.sessions]
            accepted = await intake.accept(
                database, made.workspace_id, session_id, text_of(load, number), in_flight_limit=load.in_flight_limit
            )
            if accepted.to_dispatch is not None:
                dispatcher.dispatch(accepted.to_dispatch)

    await asyncio.gather(*(accept_some() for _ in range(CONCURRENT_INTAKES)))
    await asyncio.to_thread(dispatcher.close)
    await database.close()
    app.close()


def _workers(stack: Stack) -> list[Process]:
    before = connected(stack)
    started = [stack.worker(concurrency=1000, queues="turns,messages,tools", wait=False) for _ in range(WORKERS)]
    until(lambda: connected(stack) >= before + WORKERS, 60)
    return started


def _queued(stack: Stack, workspace_id: UUID) -> int:
    count: int = stack.one(
        "SELECT count(*) FROM turns WHERE workspace_id = %s AND status IN ('queued', 'running', 'waiting')", workspace_id
    )
    return count


def measure(stack: Stack, load: Load) -> Figures:
    """Measure both phases on a stack whose sandbox runs. Raises SystemExit if a message was not answered exactly once."""
    flood, quiet = asyncio.run(_prepare(stack, load))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    stack.api(port)
    stack.beat()
    stack.worker(queues="maintenance", concurrency=4, wait=False)
    workers = _workers(stack)
    warm_up, measured = quiet.sessions[:WARM_UP], quiet.sessions[WARM_UP:]
    asyncio.run(_converse(url, quiet, warm_up, load))
    alone_s = asyncio.run(_converse(url, quiet, measured[: load.samples], load))
    for worker in workers:
        worker.stop()
    until(lambda: connected(stack) <= 1, 60)

    asyncio.run(_flood(stack, flood, load))
    began = time.monotonic()
    _workers(stack)
    until(lambda: _queued(stack, flood.workspace_id) <= load.flood - load.in_flight_limit, 300)  # by then the flood runs at a steady rate
    queued_before = _queued(stack, flood.workspace_id)
    beside_flood_s = asyncio.run(_converse(url, quiet, measured[load.samples :], load))
    queued_after = _queued(stack, flood.workspace_id)
    stack.drained(REPLY_TIMEOUT_S)
    figures = Figures(alone_s, beside_flood_s, queued_before, queued_after, time.monotonic() - began)
    _check(stack, load)
    return figures


def _check(stack: Stack, load: Load) -> None:
    wanted = load.flood + WARM_UP + 2 * load.samples
    done = stack.one("SELECT count(*) FROM turns WHERE status = 'done'")
    found = violations(stack.database_url)
    if done != wanted or found or stack.counts()["bad_requests"]:
        raise SystemExit(f"{done} of {wanted} messages answered; violations: {found}\n{stack.tails()}")


def report(load: Load, figures: Figures) -> None:
    """Print the table and the ratio."""
    console = Console(width=max(100, Console().width))
    table = Table(
        title=f"Reply times of a quiet workspace beside {load.flood} queued messages of another "
        f"({load.sessions} sessions, in-flight limit {load.in_flight_limit}); seconds"
    )
    for column in ("quiet workspace", "messages", "p50", "p95", "max", "open turns of the flood, before", "after"):
        table.add_column(column, justify="left" if column == "quiet workspace" else "right")
    for name, seconds, queued in (
        ("alone", figures.alone_s, ("", "")),
        ("beside the flood", figures.beside_flood_s, (str(figures.queued_before), str(figures.queued_after))),
    ):
        latencies = (f"{latency_s:.2f}" for latency_s in (percentile(seconds, 0.5), percentile(seconds, 0.95), max(seconds)))
        table.add_row(name, str(len(seconds)), *latencies, *queued)
    console.print(table)
    console.print(f"p95 beside the flood / p95 alone: {figures.ratio:.2f} (target: under {MAX_RATIO:.0f})")
    console.print(f"the flood: {load.flood / figures.flood_s:.0f} turns/s; every message answered, no violated invariant")
    if figures.queued_after == 0:
        console.print("[yellow]the flood ended before the measurement did; use a larger --flood[/yellow]")


def main() -> None:
    """Measure and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--flood", type=int, default=10_000)
    arguments.add_argument("--sessions", type=int, default=2000)
    arguments.add_argument("--latency", type=int, default=300, metavar="MS", help="latency of each model call")
    arguments.add_argument("--every", type=float, default=0.5, metavar="SECONDS")
    arguments.add_argument("--samples", type=int, default=80)
    arguments.add_argument("--window", type=int, default=Settings().workspace_in_flight, help="TURNLINE_WORKSPACE_IN_FLIGHT")
    options = arguments.parse_args()
    load = Load(options.flood, options.sessions, options.latency, options.every, options.samples, options.window)
    settings = {
        "TURNLINE_TURN_LEASE_S": "30",
        "TURNLINE_TURN_HEARTBEAT_S": "10",
        "TURNLINE_SWEEP_EVERY_S": "5",
        "TURNLINE_RING_STALE_S": "10",
        "TURNLINE_DB_POOL_SIZE": "10",
        "TURNLINE_WORKSPACE_IN_FLIGHT": str(options.window),
        "TURNLINE_LOG_LEVEL": "WARNING",
    }
    print(f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, Python {platform.python_version()}, {WORKERS} worker processes")
    with rig(**settings) as (stack, _, _):
        figures = measure(stack, load)
    report(load, figures)


if __name__ == "__main__":
    main()
