"""The asyncio event loop of the tasks, in its own thread beside Celery's consumer."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from time import monotonic
from typing import Any

log = logging.getLogger(__name__)

TICK_S = 0.25
REMEMBERED_TICKS = 120  # half a minute
LEFTOVERS_S = 1.0


class LoopThread:
    """A thread that runs an event loop and measures its lag."""

    def __init__(self, on_thread: Callable[[], object]) -> None:
        self.loop = asyncio.new_event_loop()
        self._on_thread = on_thread
        self._thread = threading.Thread(target=self._run, name="turns", daemon=True)
        self._stopping = False
        self._lags: deque[float] = deque([0.0], maxlen=REMEMBERED_TICKS)
        self._due = monotonic()

    def start(self) -> None:
        """Start the thread; it calls `on_thread` first."""
        self._thread.start()
        self.loop.call_soon_threadsafe(self._schedule_tick)

    def run(self, coroutine: Coroutine[Any, Any, None]) -> Future[None]:
        """Run `coroutine` on the loop, from another thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def stop(self, timeout_s: float) -> None:
        """Stop the loop and close it, from another thread. A loop that stays blocked for longer than `timeout_s` is abandoned."""
        self._stopping = True
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            log.warning("Abandoning the tasks' event loop: it is blocked")

    def lag_s(self) -> tuple[float, float]:
        """Return the loop's lag now (at its last tick, if that was longer), and the longest of the last half minute; in seconds."""
        overdue = max(0.0, monotonic() - self._due)
        last = max(self._lags[-1], overdue)
        return last, max(last, *self._lags)

    def _schedule_tick(self) -> None:
        self._due = monotonic() + TICK_S
        self.loop.call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        self._lags.append(max(0.0, monotonic() - self._due))
        self._schedule_tick()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self._on_thread()
        while not self._stopping:
            try:
                self.loop.run_forever()
            except (SystemExit, KeyboardInterrupt) as raised:  # from a child task of a body; asyncio stops the loop for these
                log.warning("A child task raised %r; the event loop continues", raised)
        try:
            self._cancel_leftovers()
        finally:
            self.loop.close()

    def _cancel_leftovers(self) -> None:
        """Cancel the tasks that bodies left behind, as `asyncio.run` does, but wait for them for a moment only."""
        left = asyncio.all_tasks(self.loop)
        for task in left:
            task.cancel()
        if left:
            self.loop.run_until_complete(asyncio.wait(left, timeout=LEFTOVERS_S))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
