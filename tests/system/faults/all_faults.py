"""All faults, by name."""

from __future__ import annotations

from tests.system.faults import broker_faults, database_faults, message_faults, worker_faults
from tests.system.faults.fault import Fault

FAULTS: dict[str, type[Fault]] = {
    fault.name: fault
    for fault in (
        worker_faults.WorkerKilled,
        worker_faults.WorkerFrozen,
        worker_faults.RollingRestart,
        broker_faults.BrokerKilled,
        broker_faults.BrokerEmptied,
        broker_faults.BrokerStalled,
        broker_faults.BrokerBlackHoled,
        broker_faults.BrokerRefusing,
        broker_faults.BrokerRepliesLost,
        broker_faults.ApiKilled,
        database_faults.PostgresKilled,
        database_faults.BackendsTerminated,
        database_faults.PostgresRepliesLost,
        database_faults.PostgresStalled,
        database_faults.ConnectionsExhausted,
        message_faults.DispatchedFiveTimes,
        message_faults.MalformedMessages,
        message_faults.ThreeBeats,
        message_faults.NoBeat,
    )
}
