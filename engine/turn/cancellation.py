"""Being told, in the middle of a turn, not to go on."""

from __future__ import annotations

import asyncio

from engine.enums import CancelReason


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
