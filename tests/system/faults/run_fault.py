"""Run one fault under one load: inject, heal, wait for all turns to end, check the data."""

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
from tests.system.faults.accounting import Accounting, check_accounting
from tests.system.faults.fault import Fault
from tests.system.faults.load import Load, Tenancy, post_all, prepare, reset_counts
from tests.system.faults.rig import READY_S, Rig

DROPPED = b"Ignoring dispatch message: invalid turn id"
OPEN = "SELECT count(*) FROM turns WHERE status IN ('queued', 'running')"
SETTLED = "SELECT count(*) FROM turns WHERE settled_at > %s"
RUNNING = "SELECT count(*) FROM turns WHERE status = 'running'"


@dataclass
class Outcome(Accounting):
    """The result of a run. `recovery_s`: for each turn that was open during a fault, the seconds from its healing to the turn's end."""

    fault: str = ""
    broker: str = ""
    injected: int = 0
    in_flight: int = 0
    seconds: float = 0.0
    recovery_s: list[float] = field(default_factory=list)
    evidence: dict[str, int] = field(default_factory=dict)


@dataclass
class FaultInterval:
    """The time during which a fault was in force."""

    injected_at: datetime
    healed_at: datetime


def run(rig: Rig, fault: Fault, load: Load, *, rounds: int = 1, at_least: int = 3, within_s: float = 60.0) -> Outcome:
    """Run `load` on a healthy `rig` and inject `fault` up to `rounds` times. In the returned outcome, `wrong` lists all problems.

    The fault is injected when `at_least` turns are running, and again when as many have settled since the last healing and are running.
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
                break  # without running turns, the fault would prove nothing
            outcome.in_flight += rig.stack.one(RUNNING)
            injected_at = datetime.now(UTC)
            try:
                fault.inject(rig)
                time.sleep(fault.duration_s)
            finally:
                fault.heal(rig)
            intervals.append(FaultInterval(injected_at, datetime.now(UTC)))
    finally:  # the next fault needs a rig without open turns
        posting.finish()
        rig.stack.drained(within_s)
        fault.after(rig)
    outcome.injected = len(intervals)
    outcome.seconds = time.monotonic() - began
    outcome.evidence = {"turns running": outcome.in_flight} | fault.evidence(rig)
    until(rig.ready, READY_S)
    workspaces = [one.workspace_id for one in tenancies]
    check_accounting(rig.stack, workspaces, outcome)
    outcome.recovery_s = recovery(rig.stack, workspaces, intervals)
    _check(rig, fault, outcome, before)
    return outcome


def _wait_until_running(rig: Rig, posting: _Posting, since: datetime, settled: int, running: int, within_s: float) -> None:
    """Wait until `settled` turns have settled since `since` and `running` turns are running, or until too few are left."""

    def met() -> bool:
        if rig.stack.one(SETTLED, since) >= settled and rig.stack.one(RUNNING) >= running:
            return True
        return posting.over and bool(rig.stack.one(OPEN) < running)

    until(met, within_s)


def recovery(stack: Stack, workspaces: list[UUID], intervals: list[FaultInterval]) -> list[float]:
    """Return, for each turn that was open during a fault, the seconds from the first such fault's healing to the turn's end.

    A turn that settled before the healing counts as 0.
    """
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
    """The state before the run: earlier faults leave messages that wait for the visibility timeout."""

    logs: dict[Path, int]
    unacknowledged: int


def _check(rig: Rig, fault: Fault, outcome: Outcome, before: _Before) -> None:
    outcome.wrong += [f"no evidence of the fault: {name}" for name, count in outcome.evidence.items() if count <= 0]
    outcome.wrong += fault.wrong(rig)
    outcome.wrong += [f"{name} ended unexpectedly with exit code {code}" for name, code in rig.exits if code not in fault.exits]
    if outcome.extra_model_calls and not fault.extra_model_calls:
        outcome.wrong.append(f"{outcome.extra_model_calls} model calls were repeated although no reply was lost")
    if left := _wait_until_none(rig.queues.waiting):
        outcome.wrong.append(f"{left} messages are left in the broker's queues")
    if not fault.leaves_unacknowledged and (left := _wait_until_none(lambda: rig.queues.unacknowledged() - before.unacknowledged)) > 0:
        outcome.wrong.append(f"{left} messages are left unacknowledged in the broker")
    outcome.wrong += [f"{name} accepts no more tasks" for name in idle_workers(rig)]
    bugs = rig.count_in_logs("a bug stopped a turn", before.logs)
    if bugs:
        outcome.wrong.append(f"{bugs} turns were stopped by a bug, according to the logs")


def idle_workers(rig: Rig, within_s: float = 20.0) -> list[str]:
    """Return the workers that accept no tasks. They get dispatch messages with an invalid turn id, which a worker ignores and logs."""
    since = {one.name: len(one.process.log.read_bytes()) for one in rig.workers}
    deadline = time.monotonic() + within_s
    while True:
        for _ in range(4 * len(since)):
            rig.queues.app.send_task("turns.advance", args=("not-a-turn-id",), queue="turns", ignore_result=True)
        time.sleep(0.2)
        idle = [one.name for one in rig.workers if DROPPED not in one.process.log.read_bytes()[since[one.name] :]]
        if not idle or time.monotonic() > deadline:
            return idle


def _wait_until_none(count: Callable[[], int], within_s: float = 10.0) -> int:
    """Wait until `count` returns 0, or for `within_s`. Return its last result."""
    deadline = time.monotonic() + within_s
    while (left := count()) > 0 and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


class _Posting(threading.Thread):
    """Sends the load. `finish` raises its error."""

    def __init__(self, rig: Rig, tenancies: list[Tenancy], load: Load) -> None:
        super().__init__(name="client")
        self.rig, self.tenancies, self.load = rig, tenancies, load
        self.error: BaseException | None = None

    @property
    def over(self) -> bool:
        """Return true once all messages are accepted or sending has failed."""
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
