"""Being told, in the middle of a turn, not to go on."""

from __future__ import annotations

import asyncio
from enum import StrEnum


class CancelReason(StrEnum):
    """Why a turn is not to go on; the `error_class` of one that ends for it.

    cancelled: somebody asked for it. interrupted, rolled_back: the customer wrote again, with that strategy. taken_over: a person answers
    now. paused: the session rests; the turn does not end, it waits.
    """

    CANCELLED = "Cancelled"
    INTERRUPTED = "Interrupted"
    ROLLED_BACK = "RolledBack"
    TAKEN_OVER = "TakenOver"
    PAUSED = "Paused"


class CancelToken:
    """A request to stop, made once, from the loop that carries the turn."""

    def __init__(self) -> None:
        self.reason: CancelReason | None = None
        self._asked = asyncio.Event()

    def ask(self, reason: CancelReason) -> None:
        """Ask the turn to stop. The first reason given counts."""
        if self.reason is None:
            self.reason = reason
            self._asked.set()

    async def wait(self) -> None:
        """Return once a stop was asked for."""
        await self._asked.wait()
