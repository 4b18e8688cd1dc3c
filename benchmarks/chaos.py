"""Messages through the API while a worker is killed every few seconds; then the books are checked.

    python -m benchmarks.chaos [--messages 1000] [--sessions 200] [--workers 2] [--kill-every 3] [--lease 30]

Each message's answer takes two model calls and a keyed tool. It ends with every message answered once, offsets dense, counters equal to a
recount, keyed tool effects done once, and no row left open; or it exits 1 and says what is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

import httpx
from httpx_aiohttp import HttpxAiohttpClient
from rich.console import Console
from rich.table import Table

from benchmarks.rig import percentile, rig
from store import workspaces
from store.database import Database
from tests.factories import Tenant, tenant
from tests.invariants import violations
from tests.pipeline.stack import TOOL, Process, Stack
from tests.servers import free_port, until

IN_FLIGHT = 50


@dataclass
class Outcome:
    """What a run came to."""

    messages: int
    seconds: float
    kills: int
    turns: int = 0
    taken_over: int = 0
    model_calls: int = 0
    unknown_calls: int = 0
    tool_requests: int = 0
    tool_effects: int = 0
    latency_p50_s: float = 0.0
    latency_p95_s: float = 0.0
    latency_max_s: float = 0.0
    wrong: list[str] = field(default_factory=list)


class Killer(threading.Thread):
    """Kills the workers with SIGKILL, one after the other, one every `every_s`, and starts another in its place."""

    def __init__(self, stack: Stack, workers: list[Process], every_s: float) -> None:
        super().__init__(daemon=True)
        self.stack, self.workers, self.every_s = stack, workers, every_s
        self.kills: list[datetime] = []
        self._stopped = threading.Event()

    def run(self) -> None:
        for place in itertools.cycle(range(len(self.workers))):
            if self._stopped.wait(self.every_s):
                return
            self.workers[place].kill()
            self.kills.append(datetime.now(UTC))
            self.workers[place] = self.stack.worker(concurrency=500, queues="turns,messages,tools", wait=False)

    def stop(self) -> None:
        self._stopped.set()
        self.join()


async def _post_all(url: str, api_key: str, made: Tenant, count: int, latency_ms: int) -> None:
    """Post `count` messages, a few at a time; one whose answer is lost is posted again with the same key."""
    gate = asyncio.Semaphore(IN_FLIGHT)

    async with HttpxAiohttpClient(base_url=url, headers={"Authorization": f"Bearer {api_key}"}, timeout=20) as client:

        async def post(number: int) -> None:
            session_id = made.session_ids[number % len(made.session_ids)]
            body = {"text": f"Is order {number} paid? [[latency {latency_ms}]]", "message_key": f"message-{number}"}
            async with gate:
                for _ in range(10):
                    try:
                        reply = await client.post(f"/v1/sessions/{session_id}/messages", json=body)
                    except httpx.TransportError:
                        continue
                    if reply.status_code == 202:
                        return
                    await asyncio.sleep(0.5)
            raise RuntimeError(f"message {number} was never accepted")

        await asyncio.gather(*(post(number) for number in range(count)))


async def _prepare(stack: Stack, sessions: int) -> tuple[Tenant, str]:
    database = Database(stack.database_url, pool_size=4)
    await database.open()
    created = await workspaces.create(database, "Chaos")
    integration = {"configuration": {"url": f"{stack.sandbox_url}/tools/orders_lookup"}}
    made = await tenant(
        database, workspace_id=created.workspace_id, sessions=sessions, strategy="enqueue", tools=({**TOOL, "integration": integration},)
    )
    await database.close()
    return made, created.api_key


def run(
    stack: Stack, *, messages: int, sessions: int, workers: int, kill_every_s: float, within_s: float, latency_ms: int = 150
) -> Outcome:
    """Run it on a stack whose sandbox is up, and return what came of it; `wrong` is empty when all is well.

    `latency_ms` is the model's, for each of a turn's two calls.
    """
    made, api_key = asyncio.run(_prepare(stack, sessions))
    port = free_port()
    stack.api(port)
    stack.beat()
    stack.worker(queues="maintenance", concurrency=4, wait=False)
    carrying = [stack.worker(concurrency=500, queues="turns,messages,tools", wait=False) for _ in range(workers)]
    until(lambda: connected(stack) >= workers, 60)
    killer = Killer(stack, carrying, kill_every_s)
    began = time.monotonic()
    killer.start()
    try:
        asyncio.run(_post_all(f"http://127.0.0.1:{port}", api_key, made, messages, latency_ms))
        stack.drained(within_s)
    finally:
        killer.stop()
    outcome = Outcome(messages, time.monotonic() - began, len(killer.kills))
    _account(stack, made.workspace_id, outcome)
    return outcome


def connected(stack: Stack) -> int:
    """How many connections workers hold to the database: each opens one before it takes work."""
    count: int = stack.one("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'turnline-worker'")
    return count


def _account(stack: Stack, workspace_id: UUID, outcome: Outcome) -> None:
    """Fill in the figures and everything that is wrong."""
    rows = stack.rows(
        "SELECT status, attempts, extract(epoch FROM settled_at - opened_at) FROM turns WHERE workspace_id = %s", workspace_id
    )
    outcome.turns = len(rows)
    outcome.taken_over = sum(attempts > 1 for _, attempts, _ in rows)
    took = [float(seconds) for _, _, seconds in rows]
    outcome.latency_p50_s, outcome.latency_p95_s = percentile(took, 0.5), percentile(took, 0.95)
    outcome.latency_max_s = max(took)
    outcome.model_calls, outcome.unknown_calls = stack.rows(
        "SELECT count(*), count(*) FILTER (WHERE state = 'unknown') FROM model_calls WHERE workspace_id = %s", workspace_id
    )[0]
    counts = stack.counts()
    keys = counts["tools"]["orders_lookup"]["by_key"]
    outcome.tool_requests = sum(one["requests"] for one in keys.values())
    outcome.tool_effects = sum(one["effects"] for one in keys.values())

    wrong = [f"{name}: {ids}" for name, ids in violations(stack.database_url).items()]
    answered = sum(status == "done" for status, _, _ in rows)
    if answered != outcome.messages or outcome.turns != outcome.messages:
        wrong.append(f"{outcome.messages} messages, {outcome.turns} turns, {answered} of them answered")
    accepted = stack.one(
        "SELECT count(DISTINCT message_key) FROM events WHERE workspace_id = %s AND kind = 'customer_message'", workspace_id
    )
    if accepted != outcome.messages:
        wrong.append(f"{accepted} of {outcome.messages} messages are in the log")
    repeated = sum(one["effects"] > 1 for one in keys.values())
    if repeated or len(keys) != outcome.messages:
        wrong.append(f"{repeated} tool effects repeated; {len(keys)} keys for {outcome.messages} tool calls")
    if counts["model"]["requests"] > outcome.model_calls:
        wrong.append(f"the provider saw {counts['model']['requests']} requests, the ledger holds {outcome.model_calls}")
    if counts["bad_requests"]:
        wrong.append(f"the provider refused requests: {counts['bad_requests'][:3]}")
    outcome.wrong = wrong


def report(outcome: Outcome) -> None:
    """Print the table, and what is wrong."""
    console = Console(width=max(100, Console().width))
    table = Table(title=f"{outcome.messages} messages, a worker killed {outcome.kills} times", show_header=False)
    for name, value in (
        ("seconds in all", f"{outcome.seconds:.1f}"),
        ("turns answered", outcome.turns),
        ("turns taken over from a dead worker", outcome.taken_over),
        ("model calls in the ledger", outcome.model_calls),
        ("of them unknown (asked, never heard)", outcome.unknown_calls),
        ("tool requests, effects", f"{outcome.tool_requests}, {outcome.tool_effects}"),
        (
            "accepted to answered: p50, p95, max (s)",
            f"{outcome.latency_p50_s:.1f}, {outcome.latency_p95_s:.1f}, {outcome.latency_max_s:.1f}",
        ),
    ):
        table.add_row(name, str(value))
    console.print(table)
    for line in outcome.wrong:
        console.print(f"[red]wrong:[/red] {line}")
    if not outcome.wrong:
        console.print("every message answered once; offsets dense; counters equal to a recount; tool effects once; nothing left open")


def main() -> None:
    """Run it and exit 0 when all is well."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--messages", type=int, default=1000)
    arguments.add_argument("--sessions", type=int, default=200)
    arguments.add_argument("--workers", type=int, default=2)
    arguments.add_argument("--kill-every", type=float, default=3.0, metavar="SECONDS")
    arguments.add_argument("--lease", type=float, default=30.0, metavar="SECONDS")
    given = arguments.parse_args()
    settings = {
        "TURNLINE_TURN_LEASE_S": str(given.lease),
        "TURNLINE_TURN_HEARTBEAT_S": str(given.lease / 3),
        "TURNLINE_SWEEP_EVERY_S": "5",
        "TURNLINE_RING_STALE_S": "10",
        "TURNLINE_LOG_LEVEL": "WARNING",
    }
    with rig(**settings) as (stack, _, _):
        outcome = run(
            stack, messages=given.messages, sessions=given.sessions, workers=given.workers, kill_every_s=given.kill_every, within_s=600
        )
    report(outcome)
    sys.exit(1 if outcome.wrong else 0)


if __name__ == "__main__":
    main()
