"""From the loop's thread to the consumer's: callbacks, in order.

`Request` methods, acknowledgements and events belong to the thread of Celery's consumer: broker channels, the event dispatcher
and the sets behind `inspect` are not thread-safe. So the pool never calls them where the tasks run; it posts them.
"""

from __future__ import annotations

import logging
import selectors
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from celery.worker.consumer import Consumer
from kombu.asynchronous import Hub
from kombu.message import Message

log = logging.getLogger(__name__)

AT_ONCE = 200  # callbacks per turn of the hub, so that a burst of ends does not keep it from reading the broker

# What the hub may still be asked to do while the worker drains. Anything else, such as the transport's socket reader, would hand
# new messages to a closed pool.
_WHILE_DRAINING = {(Message, "ack_log_error"), (Message, "reject_log_error"), (Consumer, "_flush_events")}


class Mailbox:
    """A queue of callbacks with a bell on the hub. Without a hub (`memory://`) callbacks are called where they are posted.

    `post` may be called from any thread; everything else belongs to the consumer's.
    """

    def __init__(self) -> None:
        self.hub: Hub | None = None
        self._waiting: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._rung = False

    def __len__(self) -> int:
        return len(self._waiting)

    def attach(self, hub: Hub) -> None:
        """Deliver on `hub` from now on. Called again after every reconnect, when the hub has forgotten its readers.

        A reader rather than `hub.call_soon`: the acknowledgements that callbacks ask for are then sent before the hub sleeps again,
        and a failing neighbour cannot take a delivery with it.
        """
        self.hub = hub
        hub.add_reader(self._reader.fileno(), self.deliver)

    def post(self, callback: Callable[..., Any], *args: Any) -> None:
        """Have `callback` called on the consumer's thread, after everything posted before it."""
        if self.hub is None:
            _call(callback, args)
            return
        self._waiting.append((callback, args))
        self._ring()

    def deliver(self, at_most: int = AT_ONCE) -> None:
        """Call what was posted. A callback that fails is logged; one that ends the worker (`MemoryError`, `SystemExit`) does so."""
        self._hush()
        for _ in range(at_most):
            try:
                callback, args = self._waiting.popleft()
            except IndexError:
                return
            _call(callback, args)
        if self._waiting:
            self._ring()

    def drain(self, wait_s: float) -> None:
        """Stand in for the hub, which does not turn while the worker stops: deliver, acknowledge, send events, fire timers.

        Waits up to `wait_s` seconds for a post first.
        """
        if not self._waiting:
            with selectors.DefaultSelector() as selector:
                selector.register(self._reader, selectors.EVENT_READ)
                selector.select(wait_s)
        self.deliver(len(self._waiting))
        if self.hub is not None:
            _finish_ready(self.hub)
            self.hub.fire_timers()  # AMQP heartbeats, above all

    def close(self) -> None:
        """Give the bell back. Posts made later are kept and never delivered."""
        if self.hub is not None and self._reader.fileno() in self.hub.readers:
            self.hub.remove_reader(self._reader.fileno())
        self._rung = True
        self._reader.close()
        self._writer.close()

    def _ring(self) -> None:
        if not self._rung:
            self._rung = True
            self._writer.send(b"\0")

    def _hush(self) -> None:
        # Read first: a bell rung between the two lines is then heard by the loop over what waits.
        if self._rung and self._reader.fileno() >= 0:
            try:
                self._reader.recv(4096)
            except BlockingIOError:
                log.debug("Rung, but another delivery on this thread read the bell")
            self._rung = False


def _call(callback: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        callback(*args)
    except MemoryError:
        raise
    except Exception:
        log.exception("What a task's end asked for failed: %s", getattr(callback, "__qualname__", callback))


def _finish_ready(hub: Hub) -> None:
    """Call the acknowledgements and event flushes that wait on the hub, and put everything else back."""
    ready = hub._pop_ready()
    while ready:
        callback = ready.pop()
        method = getattr(callback, "fun", None)
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", None)
        if any(isinstance(owner, kind) and name == allowed for kind, allowed in _WHILE_DRAINING):
            try:
                callback()
            except Exception:
                log.exception("An acknowledgement failed while the worker stops")
        else:
            hub.call_soon(callback)
