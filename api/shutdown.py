"""Notices a requested shutdown while there is still time to end open streams.

The server waits for its connections before it tells the application anything, and a stream never ends by itself.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Shutdown:
    """Set once the process was asked to stop."""

    def __init__(self) -> None:
        self._callbacks: list[Callable[[], None]] = []

    def add_callback(self, callback: Callable[[], None]) -> None:
        """Call `callback` on the event loop when the shutdown begins. It may be called twice."""
        self._callbacks.append(callback)

    def set(self) -> None:
        """Begin the shutdown."""
        for callback in self._callbacks:
            callback()

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Begin the shutdown on SIGTERM and SIGINT, then call the handlers that the server had installed."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        previous: dict[signal.Signals, Any] = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

        def handle(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self.set)
            handler = previous[signal.Signals(number)]
            if callable(handler):
                handler(number, frame)
            elif handler == signal.SIG_DFL:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)

        for number in previous:
            signal.signal(number, handle)
        try:
            yield
        finally:
            for number, handler in previous.items():
                if signal.getsignal(number) is handle:
                    signal.signal(number, handler)
