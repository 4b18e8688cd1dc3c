"""Chaos test: send messages while workers are killed every few seconds and the broker is emptied once, then verify the data.

    python -m benchmarks.chaos [--messages 2000] [--sessions 200] [--workspaces 10] [--broker valkey|rabbitmq]
                               [--workers 2] [--kill-every 3] [--lease 30]

A turn is three model calls and, between them, two calls of a tool with idempotency keys. At the end every message must have been
answered once, offsets must be dense, counters must equal a recount, each tool effect must have happened once and no row may be
left open; otherwise the program prints all problems and exits with 1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from rich.console import Console
from rich.table import Table

from benchmarks.rig import percentile
from cli.standalone.servers import EmbeddedPostgres, EmbeddedValkey
from cli.standalone.unprivileged import scratch_directory
from store import migrate
from tests.support.rabbitmq import RabbitMQ
from tests.support.servers import free_port, until
from tests.support.stack import Process, Stack, running
from tests.system.faults.accounting import Accounting, check_accounting
from tests.system.faults.broker_queues import Queues
from tests.system.faults.load import Load, post_all, prepare, reset_counts

STATE = """SELECT count(*) FILTER (WHERE status = 'done'), count(*) FILTER (WHERE status IN ('queued', 'running')), count(*) FROM turns
           WHERE workspace_id = ANY(%s)"""
console = Console(width=max(100, Console().width))


@dataclass
class Outcome(Accounting):
    """The result of a run. `recovery_s`: seconds from the kill that interrupted a turn to the turn's end."""

    seconds: float = 0.0
    kills: int = 0
    messages_dropped: int = 0
    turns: int = 0
    taken_over: int = 0
    unknown_calls: int = 0
    tool_requests: int = 0
    tool_effects: int = 0
    latency_s: list[float] = field(default_factory=list)
    recovery_s: list[float] = field(default_factory=list)


class Killer(threading.Thread):
    """Kills a worker with SIGKILL every `every_s` seconds, the oldest first, and starts a new one.

    A worker is killed only after it has run turns for `every_s`. Otherwise a machine that needs longer to start a worker would make no
    progress at all.
    """

    def __init__(self, stack: Stack, workers: list[Process], every_s: float, at_most: int | None) -> None:
        super().__init__(daemon=True)
        self.stack, self.workers, self.every_s, self.at_most = stack, workers, every_s, at_most
        self.kills: list[datetime] = []
        self._stopped = threading.Event()

    def run(self) -> None:
        running_since: dict[Process, float] = {}
        last = time.monotonic()
        while not self._stopped.wait(0.2) and len(self.kills) != self.at_most:
            for worker in self.workers:
                if worker not in running_since and self._turns_running(worker):
                    running_since[worker] = time.monotonic()
            candidates = [
                worker for worker in self.workers if time.monotonic() - running_since.get(worker, time.monotonic()) >= self.every_s
            ]
            victim = next((worker for worker in candidates if self._turns_running(worker)), None)
            if victim is not None and time.monotonic() - last >= self.every_s:
                last = time.monotonic()
                victim.kill()
                self.kills.append(datetime.now(UTC))
                self.workers.remove(victim)
                self.workers.append(self.stack.worker(concurrency=500, queues="turns,messages,tools", wait=False))

    def _turns_running(self, worker: Process) -> int:
        count: int = self.stack.one("SELECT count(*) FROM sessions WHERE lease_owner LIKE %s", f"%:{worker.popen.pid}:%")
        return count

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def run(
    stack: Stack,
    *,
    messages: int,
    sessions: int,
    workers: int,
    kill_every_s: float,
    at_most_kills: int | None = None,
    within_s: float,
    workspaces: int = 2,
    latency_ms: int = 150,
    empty_broker: bool = False,
    report_every_s: float = 0.0,
) -> Outcome:
    """Run the chaos test on a stack whose sandbox runs. In the returned outcome, `wrong` lists all problems.

    `latency_ms` is the latency of each of a turn's three model calls. The broker is emptied after a third of the turns.
    """
    load = Load(messages, sessions, workspaces, over_s=0.0, latency_ms=latency_ms)
    tenants = asyncio.run(prepare(stack, load))
    reset_counts(stack)
    workspace_ids = [one.workspace_id for one in tenants]
    port = free_port()
    stack.api(port)
    stack.beat()
    stack.worker(queues="maintenance", concurrency=4, wait=False)
    turn_workers = [stack.worker(concurrency=500, queues="turns,messages,tools", wait=False) for _ in range(workers)]
    until(lambda: connected(stack) >= workers, 60)
    outcome = Outcome(messages)
    killer = Killer(stack, turn_workers, kill_every_s, at_most_kills)
    watcher = Watcher(stack, workspace_ids, messages, outcome, empty_broker, report_every_s)
    began = time.monotonic()
    killer.start()
    watcher.start()
    try:
        asyncio.run(post_all(f"http://127.0.0.1:{port}", tenants, load))
        stack.drained(within_s)
    finally:
        killer.stop()
        watcher.stop()
    outcome.seconds, outcome.kills = time.monotonic() - began, len(killer.kills)
    _account(stack, workspace_ids, outcome, killer.kills)
    if empty_broker and not outcome.messages_dropped:
        outcome.wrong.append("the broker was empty when it should have been emptied")
    return outcome


class Watcher(threading.Thread):
    """Prints progress, and empties the broker once, when it holds dispatch messages."""

    def __init__(
        self, stack: Stack, workspace_ids: list[UUID], messages: int, outcome: Outcome, empty_broker: bool, report_every_s: float
    ) -> None:
        super().__init__(daemon=True)
        self.stack, self.workspace_ids, self.messages, self.outcome = stack, workspace_ids, messages, outcome
        self.to_empty, self.report_every_s = empty_broker, report_every_s
        self._stopped = threading.Event()

    def run(self) -> None:
        began = reported = time.monotonic()
        with contextlib.closing(Queues(self.stack.broker_url)) as queues:
            while not self._stopped.wait(0.05):
                done, open_, turns = self.stack.rows(STATE, self.workspace_ids)[0]
                if self.to_empty and done >= self.messages / 3 and queues.waiting():
                    self.outcome.messages_dropped = queues.empty()
                    self.to_empty = not self.outcome.messages_dropped
                if self.report_every_s and time.monotonic() - reported >= self.report_every_s:
                    reported = time.monotonic()
                    console.print(
                        f"{reported - began:.0f} s: {done} answered, {open_} open, {self.messages - turns} not yet sent", style="dim"
                    )

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def connected(stack: Stack) -> int:
    """Return the number of workers' database connections. A worker opens its first one before it accepts tasks."""
    count: int = stack.one("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'turnline-worker'")
    return count


def _account(stack: Stack, workspaces: list[UUID], outcome: Outcome, kills: list[datetime]) -> None:
    """Fill in the figures and everything that is wrong."""
    check_accounting(stack, workspaces, outcome)
    rows = stack.rows("SELECT attempts, opened_at, started_at, settled_at FROM turns WHERE workspace_id = ANY(%s)", workspaces)
    outcome.turns = len(rows)
    outcome.latency_s = [(settled - opened).total_seconds() for _, opened, _, settled in rows]
    for attempts, _, started, settled in rows:
        if attempts > 1:
            outcome.taken_over += 1
            kill = next((moment for moment in kills if started <= moment <= settled), None)
            if kill is not None:
                outcome.recovery_s.append((settled - kill).total_seconds())
    outcome.unknown_calls = stack.one("SELECT count(*) FROM model_calls WHERE state = 'unknown' AND workspace_id = ANY(%s)", workspaces)
    keys = stack.counts()["tools"]["orders_lookup"]["by_key"]
    outcome.tool_requests = sum(one["requests"] for one in keys.values())
    outcome.tool_effects = sum(one["effects"] for one in keys.values())


def _percentiles(seconds: list[float]) -> str:
    return ", ".join(f"{percentile(seconds, part):.1f}" for part in (0.5, 0.95, 1.0))


def report(outcome: Outcome) -> None:
    """Print the table and everything that is wrong."""
    table = Table(title=f"{outcome.messages} messages, a worker killed {outcome.kills} times", show_header=False)
    for name, value in (
        ("total seconds", f"{outcome.seconds:.1f}"),
        ("dispatch messages dropped from the broker", outcome.messages_dropped),
        ("turns answered", outcome.answered),
        ("lost, doubled", f"{outcome.lost}, {outcome.doubled}"),
        ("turns taken over from a dead worker", outcome.taken_over),
        ("model calls in the ledger", outcome.model_calls),
        ("of these with unknown outcome", outcome.unknown_calls),
        ("of these beyond three per turn", outcome.extra_model_calls),
        ("tool requests, effects", f"{outcome.tool_requests}, {outcome.tool_effects}"),
        ("tool effects repeated", outcome.effects_repeated),
        ("seconds from a kill to the end of the interrupted turn: p50, p95, max", _percentiles(outcome.recovery_s)),
        ("seconds from accepted to answered: p50, p95, max", _percentiles(outcome.latency_s)),
    ):
        table.add_row(name, str(value))
    console.print(table)
    for line in outcome.wrong:
        console.print(f"[red]wrong:[/red] {line}")
    if not outcome.wrong:
        console.print("every message answered once, offsets dense, counters equal to a recount, tool effects once, nothing left open")


@contextlib.contextmanager
def servers(broker: str, **settings: str) -> Iterator[Stack]:
    """Start Postgres with production durability (fsync and synchronous commits), a persistent broker and the sandbox."""
    with scratch_directory("turnline-chaos-") as directory, contextlib.ExitStack() as stack:
        postgres = stack.enter_context(EmbeddedPostgres(directory / "postgres"))
        server = RabbitMQ() if broker == "rabbitmq" else EmbeddedValkey(directory / "valkey")
        stack.enter_context(server)
        logs = Path(directory) / "logs"
        logs.mkdir()
        migrate.upgrade(postgres.url)
        yield stack.enter_context(running(Stack(postgres.url, server.url, logs, **settings)))


def main() -> None:
    """Run the chaos test; exit with 1 if anything is wrong."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--messages", type=int, default=2000)
    arguments.add_argument("--sessions", type=int, default=200)
    arguments.add_argument("--workspaces", type=int, default=10)
    arguments.add_argument("--broker", choices=("valkey", "rabbitmq"), default="valkey")
    arguments.add_argument("--workers", type=int, default=2)
    arguments.add_argument("--kill-every", type=float, default=3.0, metavar="SECONDS")
    arguments.add_argument("--lease", type=float, default=30.0, metavar="SECONDS")
    options = arguments.parse_args()
    settings = {
        "TURNLINE_TURN_LEASE_S": str(options.lease),
        "TURNLINE_TURN_HEARTBEAT_S": str(options.lease / 3),
        "TURNLINE_SWEEP_EVERY_S": "5",
        "TURNLINE_RING_STALE_S": "10",
        "TURNLINE_TURN_MAX_ATTEMPTS": "50",  # on a slow machine, a turn may be interrupted more than five times
        "TURNLINE_LOG_LEVEL": "WARNING",
    }
    with servers(options.broker, **settings) as stack:
        outcome = run(
            stack,
            messages=options.messages,
            sessions=options.sessions,
            workspaces=options.workspaces,
            workers=options.workers,
            kill_every_s=options.kill_every,
            within_s=900,
            empty_broker=True,
            report_every_s=10,
        )
    report(outcome)
    sys.exit(1 if outcome.wrong else 0)


if __name__ == "__main__":
    main()
