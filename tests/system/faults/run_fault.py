"""One fault under one load: inject, heal, drain, check the books."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from tests.support.servers import until
from tests.support.stack import Stack
from tests.system.faults.accounting import Books, settle_accounts
from tests.system.faults.fault import Fault
from tests.system.faults.load import Load, Tenancy, post_all, prepare, reset_counts
from tests.system.faults.rig import READY_S, Rig

DROPPED = b"Ignoring dispatch message: invalid turn id"
OPEN = "SELECT count(*) FROM turns WHERE status IN ('queued', 'running')"
SETTLED = "SELECT count(*) FROM turns WHERE settled_at > %s"
RUNNING = "SELECT count(*) FROM turns WHERE status = 'running'"


@dataclass
class Outcome(Books):
    """What a run came to. Seconds of `recovery_s`: from each healing until each turn that was open during the fault had settled."""

    fault: str = ""
    broker: str = ""
    injected: int = 0
    in_flight: int = 0
    seconds: float = 0.0
    recovery_s: list[float] = field(default_factory=list)
    happened: dict[str, int] = field(default_factory=dict)


@dataclass
class FaultInterval:
    """When a fault was in force."""

    injected_at: datetime
    healed_at: datetime


def run(rig: Rig, fault: Fault, load: Load, *, rounds: int = 1, at_least: int = 3, within_s: float = 60.0) -> Outcome:
    """Run `load` on a healthy `rig` with `fault` injected `rounds` times; `wrong` is empty when all is well.

    It is injected when `at_least` turns are running, and again once work has gone on since it was healed, while there is work.
    """
    outcome = Outcome(load.messages, fault=fault.name, broker=rig.kind)
    tenancies = asyncio.run(prepare(rig.stack, load))
    reset_counts(rig.stack)
    rig.exits.clear()
    before = _Before(rig.bookmarks(), rig.queues.unacknowledged())
    fault.before(rig)
    began = time.monotonic()
    posting = _Posting(rig, tenancies, load)
    posting.start()
    intervals: list[FaultInterval] = []
    try:
        for _ in range(rounds):
            since = intervals[-1].healed_at if intervals else datetime.min.replace(tzinfo=UTC)
            _wait_until_running(rig, posting, since, at_least if intervals else 0, at_least, within_s)
            if intervals and rig.stack.one(RUNNING) < at_least:
                break  # a fault that meets nothing shows nothing
            outcome.in_flight += rig.stack.one(RUNNING)
            injected_at = datetime.now(UTC)
            try:
                fault.inject(rig)
                time.sleep(fault.held_s)
            finally:
                fault.heal(rig)
            intervals.append(FaultInterval(injected_at, datetime.now(UTC)))
    finally:  # whatever came of it, the next fault finds a rig at rest
        posting.finish()
        rig.stack.drained(within_s)
        fault.after(rig)
    outcome.injected = len(intervals)
    outcome.seconds = time.monotonic() - began
    outcome.happened = {"turns in flight": outcome.in_flight} | fault.happened(rig)
    until(rig.ready, READY_S)
    workspaces = [one.workspace_id for one in tenancies]
    settle_accounts(rig.stack, workspaces, outcome)
    outcome.recovery_s = recovery(rig.stack, workspaces, intervals)
    _check(rig, fault, outcome, before)
    return outcome


def _wait_until_running(rig: Rig, posting: _Posting, since: datetime, settled: int, running: int, within_s: float) -> None:
    """Wait until so many turns have settled since then and so many run now; or until the load is nearly over."""

    def met() -> bool:
        if rig.stack.one(SETTLED, since) >= settled and rig.stack.one(RUNNING) >= running:
            return True
        return posting.over and bool(rig.stack.one(OPEN) < running)

    until(met, within_s)


def recovery(stack: Stack, workspaces: list[UUID], intervals: list[FaultInterval]) -> list[float]:
    """Seconds from the healing of the first fault that a turn was open in until the turn had settled; 0 where it settled before."""
    seconds = []
    for opened_at, settled_at in stack.rows("SELECT opened_at, settled_at FROM turns WHERE workspace_id = ANY(%s)", workspaces):
        healed = next(
            (interval.healed_at for interval in intervals if opened_at < interval.healed_at and settled_at > interval.injected_at), None
        )
        if healed is not None:
            seconds.append(max(0.0, (settled_at - healed).total_seconds()))
    return seconds


@dataclass
class _Before:
    """What was there before: earlier faults leave messages that wait for the visibility timeout."""

    logs: dict[Path, int]
    unacknowledged: int


def _check(rig: Rig, fault: Fault, outcome: Outcome, before: _Before) -> None:
    outcome.wrong += [f"it did not happen: {what}" for what, count in outcome.happened.items() if count <= 0]
    outcome.wrong += fault.wrong(rig)
    outcome.wrong += [f"{name} ended by itself with {code}" for name, code in rig.exits if code not in fault.exits]
    if outcome.extra_model_calls and not fault.extra_model_calls:
        outcome.wrong.append(f"{outcome.extra_model_calls} model calls were made again, where none could be lost")
    if left := _wait_until_none(rig.queues.waiting):
        outcome.wrong.append(f"{left} messages are left waiting in the broker")
    if not fault.leaves_unacknowledged and (left := _wait_until_none(lambda: rig.queues.unacknowledged() - before.unacknowledged)) > 0:
        outcome.wrong.append(f"{left} messages are left unacknowledged in the broker")
    outcome.wrong += [f"{name} takes no more work" for name in idle_workers(rig)]
    bugs = rig.count_in_logs("a bug stopped a turn", before.logs)
    if bugs:
        outcome.wrong.append(f"{bugs} turns met a bug, by the logs")


def idle_workers(rig: Rig, within_s: float = 20.0) -> list[str]:
    """The workers that take nothing while there is something to take: rings for no turn, which each worker drops with a word."""
    since = {one.name: len(one.process.log.read_bytes()) for one in rig.workers}
    deadline = time.monotonic() + within_s
    while True:
        for _ in range(4 * len(since)):
            rig.queues.app.send_task("turns.advance", args=("no turn",), queue="turns", ignore_result=True)
        time.sleep(0.2)
        idle = [one.name for one in rig.workers if DROPPED not in one.process.log.read_bytes()[since[one.name] :]]
        if not idle or time.monotonic() > deadline:
            return idle


def _wait_until_none(count: Callable[[], int], within_s: float = 10.0) -> int:
    """What `count` says once it says nothing is left, or at last."""
    deadline = time.monotonic() + within_s
    while (left := count()) > 0 and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


class _Posting(threading.Thread):
    """Posts the load; what went wrong is raised by `finish`."""

    def __init__(self, rig: Rig, tenancies: list[Tenancy], load: Load) -> None:
        super().__init__(name="client")
        self.rig, self.tenancies, self.load = rig, tenancies, load
        self.error: BaseException | None = None

    @property
    def over(self) -> bool:
        """Whether every message is accepted, or never will be."""
        return not self.is_alive()

    def run(self) -> None:
        try:
            asyncio.run(post_all(self.rig.api_url, self.tenancies, self.load))
        except BaseException as error:
            self.error = error

    def finish(self) -> None:
        """Wait until every message is accepted."""
        self.join()
        if self.error is not None:
            raise self.error
