"""Faults of Postgres and of the way to it."""

from __future__ import annotations

import signal

from tests.faults.fault import Fault
from tests.faults.rig import Rig


class PostgresKilled(Fault):
    """SIGKILL to the postmaster; two seconds later it runs again on the same data."""

    name = "postgres killed"

    def __init__(self) -> None:
        self.killed = 0

    def inject(self, rig: Rig) -> None:
        self.killed += rig.postgres.kill() == -signal.SIGKILL

    def heal(self, rig: Rig) -> None:
        rig.postgres.start()

    def happened(self, rig: Rig) -> dict[str, int]:
        return {"postmasters killed": self.killed}
