"""Every fault, by name."""

from __future__ import annotations

from tests.faults.fault import Fault
from tests.faults.of_brokers import BrokerKilled
from tests.faults.of_database import PostgresKilled
from tests.faults.of_workers import RollingRestart, WorkerFrozen, WorkerKilled

FAULTS: dict[str, type[Fault]] = {
    fault.name: fault
    for fault in (
        WorkerKilled,
        WorkerFrozen,
        RollingRestart,
        BrokerKilled,
        PostgresKilled,
    )
}
