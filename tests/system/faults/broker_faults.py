"""Faults of the broker and of the network between it and the product."""

from __future__ import annotations

import signal

from tests.support.proxy import Proxy
from tests.support.servers import until
from tests.system.faults import network_faults
from tests.system.faults.fault import Fault
from tests.system.faults.rig import READY_S, Rig


class BrokerKilled(Fault):
    """The broker gets SIGKILL while workers are busy. Two seconds later it starts again with the same port and data."""

    name = "broker killed"
    leaves_unacknowledged = True  # messages whose delivery was lost

    def __init__(self) -> None:
        self.killed = 0

    def inject(self, rig: Rig) -> None:
        self.killed += rig.broker.kill() == -signal.SIGKILL

    def heal(self, rig: Rig) -> None:
        rig.broker.start()

    def evidence(self, rig: Rig) -> dict[str, int]:
        return {"brokers killed": self.killed}


class BrokerEmptied(Fault):
    """FLUSHALL or a purge of every queue while they hold dispatch messages. Until they do, the workers are stopped."""

    name = "broker emptied"
    duration_s = 0.0

    def __init__(self) -> None:
        self.emptied = 0

    def inject(self, rig: Rig) -> None:
        workers = [worker.process.popen for worker in rig.workers]
        for worker in workers:
            worker.send_signal(signal.SIGSTOP)
        try:
            until(lambda: rig.queues.waiting() > 0)
            self.emptied += rig.queues.empty()
        finally:
            for worker in workers:
                worker.send_signal(signal.SIGCONT)

    def evidence(self, rig: Rig) -> dict[str, int]:
        return {"dispatch messages dropped": self.emptied}


class _ToBroker(network_faults.ProxyFault):
    leaves_unacknowledged = True  # messages that Valkey sent on a connection that was lost

    def proxy(self, rig: Rig) -> Proxy:
        return rig.to_broker


class BrokerStalled(_ToBroker, network_faults.Stalled):
    name = "broker stalled"


class BrokerBlackHoled(_ToBroker, network_faults.BlackHoled):
    name = "broker black-holed"


class BrokerRefusing(_ToBroker, network_faults.Refusing):
    name = "broker refusing"


class BrokerRepliesLost(_ToBroker, network_faults.RepliesLost):
    name = "broker's replies lost"


class ApiKilled(_ToBroker, network_faults.Refusing):
    """The API accepts messages while the broker refuses connections, and is killed before it could dispatch their turns."""

    name = "API killed before dispatch"
    exits = frozenset({-signal.SIGKILL})
    duration_s = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.undispatched = self.killed = 0

    def inject(self, rig: Rig) -> None:
        super().inject(rig)
        until(lambda: self._undispatched(rig) > 0)
        with rig.lock:
            api = rig.named("api").process
            api.kill()
            self.undispatched += self._undispatched(rig)
            self.killed += api.popen.returncode == -signal.SIGKILL

    def heal(self, rig: Rig) -> None:
        super().heal(rig)
        until(rig.ready, READY_S)

    @staticmethod
    def _undispatched(rig: Rig) -> int:
        count: int = rig.stack.one("SELECT count(*) FROM turns WHERE status = 'queued' AND dispatched_at IS NULL AND dispatch_count = 0")
        return count

    def evidence(self, rig: Rig) -> dict[str, int]:
        return super().evidence(rig) | {"APIs killed": self.killed, "turns accepted and not dispatched": self.undispatched}
