"""Faults of the worker processes."""

from __future__ import annotations

import signal
from typing import ClassVar

from tests.support.servers import until
from tests.system.faults.fault import Fault
from tests.system.faults.rig import READY_S, Rig, SupervisedProcess


def busiest_worker(rig: Rig) -> SupervisedProcess:
    """Wait until a worker runs turns, then return the worker that runs most."""
    until(lambda: any(rig.lease_count(one.process) for one in rig.workers))
    return max(rig.workers, key=lambda one: rig.lease_count(one.process))


class WorkerKilled(Fault):
    """A worker that runs turns gets SIGKILL; another is started in its place."""

    name = "worker killed"
    duration_s = 0.0
    exits = frozenset({-signal.SIGKILL})
    leaves_unacknowledged = True

    def __init__(self) -> None:
        self.killed = self.running_turns = 0

    def inject(self, rig: Rig) -> None:
        with rig.lock:
            worker = busiest_worker(rig)
            self.running_turns += rig.lease_count(worker.process)
            worker.process.kill()
            self.killed += worker.process.popen.returncode == -signal.SIGKILL
        rig.restart_ended()

    def heal(self, rig: Rig) -> None:
        until(rig.ready, READY_S)

    def evidence(self, rig: Rig) -> dict[str, int]:
        return {"workers killed": self.killed, "turns that they ran": self.running_turns}


class WorkerFrozen(Fault):
    """A worker gets SIGSTOP for longer than its leases, then SIGCONT. Others have taken over its turns, so it must not write any more."""

    name = "worker frozen"
    leaves_unacknowledged = True  # messages that Valkey sent to the frozen worker's socket

    def __init__(self) -> None:
        self.frozen: SupervisedProcess | None = None
        self.running_turns = self.taken_over = 0

    def inject(self, rig: Rig) -> None:
        self.frozen = busiest_worker(rig)
        self.frozen.process.popen.send_signal(signal.SIGSTOP)
        self.running_turns += rig.lease_count(self.frozen.process)

    def heal(self, rig: Rig) -> None:
        assert self.frozen is not None
        frozen = self.frozen.process
        leases = rig.lease_count(frozen)
        until(lambda: rig.lease_count(frozen) == 0, 30)  # other workers hold these leases or have released them
        self.taken_over += leases or self.running_turns
        frozen.popen.send_signal(signal.SIGCONT)

    def evidence(self, rig: Rig) -> dict[str, int]:
        return {"turns that the frozen worker ran": self.running_turns, "taken over from it": self.taken_over}


class RollingRestart(Fault):
    """One worker after another gets SIGTERM, finishes its turns and is replaced."""

    name = "rolling restart"
    duration_s = 0.0
    exits = frozenset({0})
    extra_model_calls: ClassVar[bool] = False

    def __init__(self) -> None:
        self.running_turns = self.clean_exits = 0

    def inject(self, rig: Rig) -> None:
        for worker in list(rig.workers):
            old = worker.process
            self.running_turns += rig.lease_count(old)
            old.popen.send_signal(signal.SIGTERM)
            self.clean_exits += old.popen.wait(30) == 0
            rig.restart_ended()
            until(rig.ready, READY_S)

    def evidence(self, rig: Rig) -> dict[str, int]:
        return {"workers that exited cleanly": self.clean_exits, "turns that they ran": self.running_turns}
