"""Callbacks from the loop's thread to the consumer's thread, in order.

`Request` methods, acknowledgements and events belong to the thread of Celery's consumer: broker channels, the event dispatcher and the
sets behind `inspect` are not thread-safe. So the pool never calls them on the tasks' thread; it posts them here.
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

MAX_PER_CYCLE = 200  # callbacks per cycle of the hub, so that many tasks ending at once do not keep it from reading the broker

# The hub's callbacks that may still run while the worker drains. Others, such as the transport's socket reader, would hand new messages
# to a closed pool.
_WHILE_DRAINING = {(Message, "ack_log_error"), (Message, "reject_log_error"), (Consumer, "_flush_events")}


class Mailbox:
    """A queue of callbacks that wakes the hub through a socket pair. Without a hub (`memory://`), `post` calls the callback itself.

    `post` may be called from any thread; everything else belongs to the consumer's.
    """

    def __init__(self) -> None:
        self.hub: Hub | None = None
        self._callbacks: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._woken = False

    def __len__(self) -> int:
        return len(self._callbacks)

    def attach(self, hub: Hub) -> None:
        """Deliver on `hub` from now on. Called again after every reconnect, when the hub has forgotten its readers.

        A reader rather than `hub.call_soon`: acknowledgements that callbacks cause are then sent before the hub sleeps again, and another
        callback that fails cannot prevent a delivery.
        """
        self.hub = hub
        hub.add_reader(self._reader.fileno(), self.deliver)

    def post(self, callback: Callable[..., Any], *args: Any) -> None:
        """Have `callback` called on the consumer's thread, after everything posted before it."""
        if self.hub is None:
            _call(callback, args)
            return
        self._callbacks.append((callback, args))
        self._wake_hub()

    def deliver(self, at_most: int = MAX_PER_CYCLE) -> None:
        """Call the posted callbacks. One that fails is logged; one that ends the worker (`MemoryError`, `SystemExit`) does so."""
        self._clear_wake_up()
        for _ in range(at_most):
            try:
                callback, args = self._callbacks.popleft()
            except IndexError:
                return
            _call(callback, args)
        if self._callbacks:
            self._wake_hub()

    def drain(self, wait_s: float) -> None:
        """Do the hub's work while the worker stops and the hub does not run: deliver, acknowledge, send events, fire timers.

        Waits up to `wait_s` seconds for a post first.
        """
        if not self._callbacks:
            with selectors.DefaultSelector() as selector:
                selector.register(self._reader, selectors.EVENT_READ)
                selector.select(wait_s)
        self.deliver(len(self._callbacks))
        if self.hub is not None:
            _finish_ready(self.hub)
            self.hub.fire_timers()  # above all AMQP heartbeats

    def close(self) -> None:
        """Close the sockets. Callbacks posted later are never called."""
        if self.hub is not None and self._reader.fileno() in self.hub.readers:
            self.hub.remove_reader(self._reader.fileno())
        self._woken = True
        self._reader.close()
        self._writer.close()

    def _wake_hub(self) -> None:
        if not self._woken:
            self._woken = True
            self._writer.send(b"\0")

    def _clear_wake_up(self) -> None:
        # Read before resetting the flag: a callback posted between the two lines is then found by the loop in `deliver`.
        if self._woken and self._reader.fileno() >= 0:
            try:
                self._reader.recv(4096)
            except BlockingIOError:
                log.debug("Woken up, but another delivery on this thread has read the byte")
            self._woken = False


def _call(callback: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        callback(*args)
    except MemoryError:
        raise
    except Exception:
        log.exception("Callback of a task failed: %s", getattr(callback, "__qualname__", callback))


def _finish_ready(hub: Hub) -> None:
    """Call the acknowledgements and event flushes that are queued on the hub, and put everything else back."""
    ready = hub._pop_ready()
    while ready:
        callback = ready.pop()
        method = getattr(callback, "fun", None)
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", None)
        if any(isinstance(owner, kind) and name == allowed for kind, allowed in _WHILE_DRAINING):
            try:
                callback()
            except Exception:
                log.exception("Acknowledgement failed while the worker stops")
        else:
            hub.call_soon(callback)
