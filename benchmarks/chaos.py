"""Messages through the API while a worker is killed every few seconds and the broker is emptied once; then the books are checked.

    python -m benchmarks.chaos [--messages 2000] [--sessions 200] [--workspaces 10] [--broker valkey|rabbitmq]
                               [--workers 2] [--kill-every 3] [--lease 30]

A turn is three model calls and, between them, two calls of a keyed tool. It ends with every message answered once, offsets dense,
counters equal to a recount, keyed tool effects done once, and no row left open; or it exits 1 and says what is wrong.
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
from tests.system.faults.accounting import Books, settle_accounts
from tests.system.faults.broker_queues import Queues
from tests.system.faults.load import Load, post_all, prepare, reset_counts

STATE = """SELECT count(*) FILTER (WHERE status = 'done'), count(*) FILTER (WHERE status IN ('queued', 'running')), count(*) FROM turns
           WHERE workspace_id = ANY(%s)"""
console = Console(width=max(100, Console().width))


@dataclass
class Outcome(Books):
    """What a run came to. `recovery_s`: from the kill that cut a turn to its end."""

    seconds: float = 0.0
    kills: int = 0
    thrown_away: int = 0
    turns: int = 0
    taken_over: int = 0
    unknown_calls: int = 0
    tool_requests: int = 0
    tool_effects: int = 0
    latency_s: list[float] = field(default_factory=list)
    recovery_s: list[float] = field(default_factory=list)


class Killer(threading.Thread):
    """Kills workers with SIGKILL, the oldest first, one every `every_s`, and starts another in its place.

    One that has not carried turns for `every_s` yet is spared for the time being: where a machine is so slow that starting a worker takes
    longer than that, nothing would ever be done.
    """

    def __init__(self, stack: Stack, workers: list[Process], every_s: float, at_most: int | None) -> None:
        super().__init__(daemon=True)
        self.stack, self.workers, self.every_s, self.at_most = stack, workers, every_s, at_most
        self.kills: list[datetime] = []
        self._stopped = threading.Event()

    def run(self) -> None:
        carrying_since: dict[Process, float] = {}
        last = time.monotonic()
        while not self._stopped.wait(0.2) and len(self.kills) != self.at_most:
            for worker in self.workers:
                if worker not in carrying_since and self._carried(worker):
                    carrying_since[worker] = time.monotonic()
            ripe = [worker for worker in self.workers if time.monotonic() - carrying_since.get(worker, time.monotonic()) >= self.every_s]
            doomed = next((worker for worker in ripe if self._carried(worker)), None)
            if doomed is not None and time.monotonic() - last >= self.every_s:
                last = time.monotonic()
                doomed.kill()
                self.kills.append(datetime.now(UTC))
                self.workers.remove(doomed)
                self.workers.append(self.stack.worker(concurrency=500, queues="turns,messages,tools", wait=False))

    def _carried(self, worker: Process) -> int:
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
    """Run it on a stack whose sandbox is up, and return what came of it; `wrong` is empty when all is well.

    `latency_ms` is the model's, for each of a turn's three calls. The broker is emptied when a third of the turns have been answered.
    """
    load = Load(messages, sessions, workspaces, over_s=0.0, latency_ms=latency_ms)
    tenancies = asyncio.run(prepare(stack, load))
    reset_counts(stack)
    made = [one.workspace_id for one in tenancies]
    port = free_port()
    stack.api(port)
    stack.beat()
    stack.worker(queues="maintenance", concurrency=4, wait=False)
    carrying = [stack.worker(concurrency=500, queues="turns,messages,tools", wait=False) for _ in range(workers)]
    until(lambda: connected(stack) >= workers, 60)
    outcome = Outcome(messages)
    killer = Killer(stack, carrying, kill_every_s, at_most_kills)
    watcher = Watcher(stack, made, messages, outcome, empty_broker, report_every_s)
    began = time.monotonic()
    killer.start()
    watcher.start()
    try:
        asyncio.run(post_all(f"http://127.0.0.1:{port}", tenancies, load))
        stack.drained(within_s)
    finally:
        killer.stop()
        watcher.stop()
    outcome.seconds, outcome.kills = time.monotonic() - began, len(killer.kills)
    _account(stack, made, outcome, killer.kills)
    if empty_broker and not outcome.thrown_away:
        outcome.wrong.append("the broker held nothing when it was emptied")
    return outcome


class Watcher(threading.Thread):
    """Says how far it is, and empties the broker once, when rings wait in it."""

    def __init__(self, stack: Stack, made: list[UUID], messages: int, outcome: Outcome, empty_broker: bool, report_every_s: float) -> None:
        super().__init__(daemon=True)
        self.stack, self.made, self.messages, self.outcome = stack, made, messages, outcome
        self.to_empty, self.report_every_s = empty_broker, report_every_s
        self._stopped = threading.Event()

    def run(self) -> None:
        began = said = time.monotonic()
        with contextlib.closing(Queues(self.stack.broker_url)) as queues:
            while not self._stopped.wait(0.05):
                done, open_, turns = self.stack.rows(STATE, self.made)[0]
                if self.to_empty and done >= self.messages / 3 and queues.waiting():
                    self.outcome.thrown_away = queues.empty()
                    self.to_empty = not self.outcome.thrown_away
                if self.report_every_s and time.monotonic() - said >= self.report_every_s:
                    said = time.monotonic()
                    console.print(f"{said - began:.0f} s: {done} answered, {open_} open, {self.messages - turns} to come", style="dim")

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def connected(stack: Stack) -> int:
    """How many connections workers hold to the database: each opens one before it takes work."""
    count: int = stack.one("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'turnline-worker'")
    return count


def _account(stack: Stack, workspaces: list[UUID], outcome: Outcome, kills: list[datetime]) -> None:
    """Fill in the figures and everything that is wrong."""
    settle_accounts(stack, workspaces, outcome)
    rows = stack.rows("SELECT attempts, opened_at, started_at, settled_at FROM turns WHERE workspace_id = ANY(%s)", workspaces)
    outcome.turns = len(rows)
    outcome.latency_s = [(settled - opened).total_seconds() for _, opened, _, settled in rows]
    for attempts, _, started, settled in rows:
        if attempts > 1:
            outcome.taken_over += 1
            cut = next((kill for kill in kills if started <= kill <= settled), None)
            if cut is not None:
                outcome.recovery_s.append((settled - cut).total_seconds())
    outcome.unknown_calls = stack.one("SELECT count(*) FROM model_calls WHERE state = 'unknown' AND workspace_id = ANY(%s)", workspaces)
    keys = stack.counts()["tools"]["orders_lookup"]["by_key"]
    outcome.tool_requests = sum(one["requests"] for one in keys.values())
    outcome.tool_effects = sum(one["effects"] for one in keys.values())


def _spread(seconds: list[float]) -> str:
    return ", ".join(f"{percentile(seconds, part):.1f}" for part in (0.5, 0.95, 1.0))


def report(outcome: Outcome) -> None:
    """Print the table, and what is wrong."""
    table = Table(title=f"{outcome.messages} messages, a worker killed {outcome.kills} times", show_header=False)
    for name, value in (
        ("seconds in all", f"{outcome.seconds:.1f}"),
        ("rings thrown away with the broker's contents", outcome.thrown_away),
        ("turns answered", outcome.answered),
        ("lost, doubled", f"{outcome.lost}, {outcome.doubled}"),
        ("turns taken over from a dead worker", outcome.taken_over),
        ("model calls in the ledger", outcome.model_calls),
        ("of them unknown (asked, never heard)", outcome.unknown_calls),
        ("of them extra (beyond three a turn)", outcome.extra_model_calls),
        ("tool requests, effects", f"{outcome.tool_requests}, {outcome.tool_effects}"),
        ("tool effects repeated", outcome.effects_repeated),
        ("recovery, from the kill to the cut turn's end: p50, p95, max (s)", _spread(outcome.recovery_s)),
        ("accepted to answered: p50, p95, max (s)", _spread(outcome.latency_s)),
    ):
        table.add_row(name, str(value))
    console.print(table)
    for line in outcome.wrong:
        console.print(f"[red]wrong:[/red] {line}")
    if not outcome.wrong:
        console.print("every message answered once; offsets dense; counters equal to a recount; tool effects once; nothing left open")


@contextlib.contextmanager
def servers(broker: str, **settings: str) -> Iterator[Stack]:
    """Postgres as it is run in earnest (fsync and synchronous commits on), the broker with its data kept, the sandbox."""
    with scratch_directory("turnline-chaos-") as directory, contextlib.ExitStack() as stack:
        postgres = stack.enter_context(EmbeddedPostgres(directory / "postgres"))
        server = RabbitMQ() if broker == "rabbitmq" else EmbeddedValkey(directory / "valkey")
        stack.enter_context(server)
        logs = Path(directory) / "logs"
        logs.mkdir()
        migrate.upgrade(postgres.url)
        yield stack.enter_context(running(Stack(postgres.url, server.url, logs, **settings)))


def main() -> None:
    """Run it and exit 0 when all is well."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--messages", type=int, default=2000)
    arguments.add_argument("--sessions", type=int, default=200)
    arguments.add_argument("--workspaces", type=int, default=10)
    arguments.add_argument("--broker", choices=("valkey", "rabbitmq"), default="valkey")
    arguments.add_argument("--workers", type=int, default=2)
    arguments.add_argument("--kill-every", type=float, default=3.0, metavar="SECONDS")
    arguments.add_argument("--lease", type=float, default=30.0, metavar="SECONDS")
    given = arguments.parse_args()
    settings = {
        "TURNLINE_TURN_LEASE_S": str(given.lease),
        "TURNLINE_TURN_HEARTBEAT_S": str(given.lease / 3),
        "TURNLINE_SWEEP_EVERY_S": "5",
        "TURNLINE_RING_STALE_S": "10",
        "TURNLINE_TURN_MAX_ATTEMPTS": "50",  # where the machine is slow, a turn is cut more than five times: no reason to end it here
        "TURNLINE_LOG_LEVEL": "WARNING",
    }
    with servers(given.broker, **settings) as stack:
        outcome = run(
            stack,
            messages=given.messages,
            sessions=given.sessions,
            workspaces=given.workspaces,
            workers=given.workers,
            kill_every_s=given.kill_every,
            within_s=900,
            empty_broker=True,
            report_every_s=10,
        )
    report(outcome)
    sys.exit(1 if outcome.wrong else 0)


if __name__ == "__main__":
    main()
