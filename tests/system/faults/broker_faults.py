"""Faults of the broker and of the way to it."""

from __future__ import annotations

import signal

from tests.support.proxy import Proxy
from tests.support.servers import until
from tests.system.faults import network_faults
from tests.system.faults.fault import Fault
from tests.system.faults.rig import READY_S, Rig


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


class BrokerEmptied(Fault):
    """FLUSHALL, or a purge of every queue, while rings wait in them. The workers sleep until some do."""

    name = "broker emptied"
    held_s = 0.0

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

    def happened(self, rig: Rig) -> dict[str, int]:
        return {"rings thrown away": self.emptied}


class _ToBroker(network_faults.ProxyFault):
    leaves_unacknowledged = True  # what Valkey had sent into a connection that was lost

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
    """The API accepts messages while the broker takes no rings, and is killed with the rings in its memory."""

    name = "API killed before it rang"
    exits = frozenset({-signal.SIGKILL})
    held_s = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.unrung = self.killed = 0

    def inject(self, rig: Rig) -> None:
        super().inject(rig)
        until(lambda: self._undispatched(rig) > 0)
        with rig.lock:
            api = rig.named("api").process
            api.kill()
            self.unrung += self._undispatched(rig)
            self.killed += api.popen.returncode == -signal.SIGKILL

    def heal(self, rig: Rig) -> None:
        super().heal(rig)
        until(rig.ready, READY_S)

    @staticmethod
    def _undispatched(rig: Rig) -> int:
        count: int = rig.stack.one("SELECT count(*) FROM turns WHERE status = 'queued' AND dispatched_at IS NULL AND dispatch_count = 0")
        return count

    def happened(self, rig: Rig) -> dict[str, int]:
        return super().happened(rig) | {"APIs killed": self.killed, "turns accepted and never rung": self.unrung}
