"""Cooperative cancellation of a running turn."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from engine.enums import CancelReason

Result = TypeVar("Result")


class CutOff(Exception):
    """The work was cancelled because the turn is to stop."""


class CancelToken:
    """A request to stop one turn. Used on the loop that runs the turn; the first reason counts."""

    def __init__(self) -> None:
        self.reason: CancelReason | None = None
        self._requested = asyncio.Event()

    def request(self, reason: CancelReason) -> None:
        """Ask the turn to stop."""
        if self.reason is None:
            self.reason = reason
            self._requested.set()

    async def wait(self) -> CancelReason:
        """Return the reason once a stop was requested."""
        await self._requested.wait()
        assert self.reason is not None  # noqa: S101 - set before the event
        return self.reason

    async def guard(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Return the result of `work`, or raise its error.

        Raises:
            CutOff: a stop was requested first; `work` was cancelled and has ended.
        """
        working = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._requested.wait())
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                working.cancel()
                await asyncio.wait({working})
            if working.cancelled():
                raise CutOff
            return working.result()
        finally:
            working.cancel()
            stopping.cancel()
            await asyncio.gather(working, stopping, return_exceptions=True)
