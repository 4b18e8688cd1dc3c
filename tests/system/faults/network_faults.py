"""Network faults, the same for the broker and for Postgres."""

from __future__ import annotations

import contextlib
import socket
import time

from tests.support.proxy import Counts, Proxy
from tests.system.faults.fault import Fault
from tests.system.faults.rig import Rig


class ProxyFault(Fault):
    """A fault that a proxy causes. The proxy's counts are the evidence."""

    def __init__(self) -> None:
        self.before_counts = Counts()

    def proxy(self, rig: Rig) -> Proxy:
        """Return the proxy that causes the fault."""
        raise NotImplementedError

    def before(self, rig: Rig) -> None:
        self.before_counts = self.proxy(rig).counts

    def heal(self, rig: Rig) -> None:
        self.proxy(rig).heal()

    def counts(self, rig: Rig) -> Counts:
        """Return the proxy's counts since the load began."""
        return self.proxy(rig).counts - self.before_counts


class Stalled(ProxyFault):
    """Nothing is forwarded and connections stay open, longer than a lease and the broker's socket timeout; then traffic goes on."""

    duration_s = 6.0

    def inject(self, rig: Rig) -> None:
        self.proxy(rig).stall()

    def evidence(self, rig: Rig) -> dict[str, int]:
        return {"bytes delayed": self.counts(rig).held_bytes}


class BlackHoled(ProxyFault):
    """All data is discarded and new connections get no reply; then the open connections are reset."""

    duration_s = 6.0

    def inject(self, rig: Rig) -> None:
        self.proxy(rig).black_hole()

    def evidence(self, rig: Rig) -> dict[str, int]:
        return {"bytes discarded": self.counts(rig).swallowed_bytes}


class Refusing(ProxyFault):
    """All connections are reset and new ones refused."""

    duration_s = 3.0

    def __init__(self) -> None:
        super().__init__()
        self.refusals = 0

    def inject(self, rig: Rig) -> None:
        self.proxy(rig).refuse()
        self.proxy(rig).cut()
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", self.proxy(rig).port), 5):
            return
        self.refusals += 1

    def evidence(self, rig: Rig) -> dict[str, int]:
        return {"connections cut": self.counts(rig).cut, "connections refused": self.refusals}


class RepliesLost(ProxyFault):
    """Eight times within two seconds, requests are executed, their replies are lost, and the connections are reset."""

    duration_s = 0.0

    def inject(self, rig: Rig) -> None:
        for _ in range(8):
            self.proxy(rig).lose_replies()
            time.sleep(0.25)

    def evidence(self, rig: Rig) -> dict[str, int]:
        return {"replies lost": self.counts(rig).lost_replies}
