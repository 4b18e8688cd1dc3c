"""Faults of the way to a server: the same for the broker and for Postgres."""

from __future__ import annotations

import contextlib
import socket
import time

from tests.support.proxy import Counts, Proxy
from tests.system.faults.fault import Fault
from tests.system.faults.rig import Rig


class ProxyFault(Fault):
    """A fault of a proxy; what it counted meanwhile is `done`."""

    def __init__(self) -> None:
        self.was = Counts()

    def proxy(self, rig: Rig) -> Proxy:
        """The proxy it is done to."""
        raise NotImplementedError

    def before(self, rig: Rig) -> None:
        self.was = self.proxy(rig).counts

    def heal(self, rig: Rig) -> None:
        self.proxy(rig).heal()

    def done(self, rig: Rig) -> Counts:
        """What the proxy did since the load began."""
        return self.proxy(rig).counts - self.was


class Stalled(ProxyFault):
    """No byte moves and no connection ends, for longer than a lease and than the broker's socket timeout; then everything flows on."""

    held_s = 6.0

    def inject(self, rig: Rig) -> None:
        self.proxy(rig).stall()

    def happened(self, rig: Rig) -> dict[str, int]:
        return {"bytes held": self.done(rig).held_bytes}


class BlackHoled(ProxyFault):
    """Everything sent is swallowed, new connections get no answer; then what was open is reset."""

    held_s = 6.0

    def inject(self, rig: Rig) -> None:
        self.proxy(rig).black_hole()

    def happened(self, rig: Rig) -> dict[str, int]:
        return {"bytes swallowed": self.done(rig).swallowed_bytes}


class Refusing(ProxyFault):
    """Every connection is reset and no new one accepted."""

    held_s = 3.0

    def __init__(self) -> None:
        super().__init__()
        self.budget_refusal = 0

    def inject(self, rig: Rig) -> None:
        self.proxy(rig).refuse()
        self.proxy(rig).cut()
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", self.proxy(rig).port), 5):
            return
        self.budget_refusal += 1

    def happened(self, rig: Rig) -> dict[str, int]:
        return {"connections cut": self.done(rig).cut, "seen refused": self.budget_refusal}


class RepliesLost(ProxyFault):
    """Again and again for two seconds, every connection loses the reply to what it asked, which was done, and is reset."""

    held_s = 0.0

    def inject(self, rig: Rig) -> None:
        for _ in range(8):
            self.proxy(rig).lose_replies()
            time.sleep(0.25)

    def happened(self, rig: Rig) -> dict[str, int]:
        return {"replies lost": self.done(rig).lost_replies}
