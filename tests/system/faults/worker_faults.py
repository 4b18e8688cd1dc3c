"""Faults of the worker processes."""

from __future__ import annotations

import signal
from typing import ClassVar

from tests.support.servers import until
from tests.system.faults.fault import Fault
from tests.system.faults.rig import READY_S, Rig, SupervisedProcess


def busiest_worker(rig: Rig) -> SupervisedProcess:
    """The worker that carries most turns; one carries some, soon."""
    until(lambda: any(rig.lease_count(one.process) for one in rig.workers))
    return max(rig.workers, key=lambda one: rig.lease_count(one.process))


class WorkerKilled(Fault):
    """SIGKILL to a worker with turns in its hands; another is started in its place."""

    name = "worker killed"
    held_s = 0.0
    exits = frozenset({-signal.SIGKILL})
    leaves_unacknowledged = True

    def __init__(self) -> None:
        self.killed = self.carried = 0

    def inject(self, rig: Rig) -> None:
        with rig.lock:
            worker = busiest_worker(rig)
            self.carried += rig.lease_count(worker.process)
            worker.process.kill()
            self.killed += worker.process.popen.returncode == -signal.SIGKILL
        rig.restart_ended()

    def heal(self, rig: Rig) -> None:
        until(rig.ready, READY_S)

    def happened(self, rig: Rig) -> dict[str, int]:
        return {"workers killed": self.killed, "turns in their hands": self.carried}


class WorkerFrozen(Fault):
    """SIGSTOP to a worker for longer than its leases last, then SIGCONT: others have taken its turns over, and it may write no more."""

    name = "worker frozen"
    leaves_unacknowledged = True  # what Valkey handed to the sleeper's socket

    def __init__(self) -> None:
        self.frozen: SupervisedProcess | None = None
        self.carried = self.taken_over = 0

    def inject(self, rig: Rig) -> None:
        self.frozen = busiest_worker(rig)
        self.frozen.process.popen.send_signal(signal.SIGSTOP)
        self.carried += rig.lease_count(self.frozen.process)

    def heal(self, rig: Rig) -> None:
        assert self.frozen is not None
        frozen = self.frozen.process
        held = rig.lease_count(frozen)
        until(lambda: rig.lease_count(frozen) == 0, 30)  # another worker holds, or has finished, what it held
        self.taken_over += held or self.carried
        frozen.popen.send_signal(signal.SIGCONT)

    def happened(self, rig: Rig) -> dict[str, int]:
        return {"turns in the frozen worker's hands": self.carried, "taken over from it": self.taken_over}


class RollingRestart(Fault):
    """SIGTERM to one worker after the other; each finishes what it carries, and another is started in its place."""

    name = "rolling restart"
    held_s = 0.0
    exits = frozenset({0})
    extra_model_calls: ClassVar[bool] = False

    def __init__(self) -> None:
        self.carried = self.left_in_order = 0

    def inject(self, rig: Rig) -> None:
        for worker in list(rig.workers):
            old = worker.process
            self.carried += rig.lease_count(old)
            old.popen.send_signal(signal.SIGTERM)
            self.left_in_order += old.popen.wait(30) == 0
            rig.restart_ended()
            until(rig.ready, READY_S)

    def happened(self, rig: Rig) -> dict[str, int]:
        return {"workers that left in order": self.left_in_order, "turns in their hands": self.carried}
