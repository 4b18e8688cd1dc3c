"""Every fault, by name."""

from __future__ import annotations

from tests.faults import of_brokers, of_database, of_messages, of_workers
from tests.faults.fault import Fault

FAULTS: dict[str, type[Fault]] = {
    fault.name: fault
    for fault in (
        of_workers.WorkerKilled,
        of_workers.WorkerFrozen,
        of_workers.RollingRestart,
        of_brokers.BrokerKilled,
        of_brokers.BrokerEmptied,
        of_brokers.BrokerStalled,
        of_brokers.BrokerBlackHoled,
        of_brokers.BrokerRefusing,
        of_brokers.BrokerRepliesLost,
        of_brokers.ApiKilled,
        of_database.PostgresKilled,
        of_database.BackendsTerminated,
        of_database.PostgresRepliesLost,
        of_database.PostgresStalled,
        of_database.ConnectionsExhausted,
        of_messages.RungFiveTimes,
        of_messages.Garbage,
        of_messages.ThreeBeats,
        of_messages.NoBeat,
    )
}
