"""Faults of the broker and of the way to it."""

from __future__ import annotations

import signal

from tests.faults.fault import Fault
from tests.faults.rig import Rig


class BrokerKilled(Fault):
    """SIGKILL to the broker while workers are busy; two seconds later it runs again on the same port and data."""

    name = "broker killed"
    leaves_unacknowledged = True  # a reply that was on its way

    def __init__(self) -> None:
        self.killed = 0

    def inject(self, rig: Rig) -> None:
        self.killed += rig.broker.kill() == -signal.SIGKILL

    def heal(self, rig: Rig) -> None:
        rig.broker.start()

    def happened(self, rig: Rig) -> dict[str, int]:
        return {"brokers killed": self.killed}
