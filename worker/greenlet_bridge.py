"""Waiting in the middle of ordinary functions.

Celery's tracer is a plain function that calls the task's body. To let that body be a coroutine, the tracer runs in a greenlet, and
the coroutine is stepped inside that same greenlet: whatever it waits for is handed out to the asyncio task around the greenlet.
Because the greenlet does not change, everything Celery keys by greenlet (`task.request`, `current_task`) stays right across awaits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

from greenlet import getcurrent, greenlet

T = TypeVar("T")

AtEdge = Callable[[BaseException | None], BaseException | None]


class StepGreenlet(greenlet):  # type: ignore[misc]  # greenlet has no types
    """A greenlet whose function may wait on the loop around it.

    `at_edge` is called whenever a coroutine ends here, with what it raised, or None. What it returns is raised in place of the
    coroutine's own end; None leaves that end as it is.
    """

    at_edge: AtEdge

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Return what `coroutine` returns. Only to be called inside this greenlet."""
        try:
            result = self._step(coroutine)
        except BaseException as ended:
            instead = self.at_edge(ended)
            if instead is None or instead is ended:
                raise
            raise instead from ended
        instead = self.at_edge(None)
        if instead is not None:
            raise instead
        return result

    def _step(self, coroutine: Coroutine[Any, Any, T]) -> T:
        outside = self.parent
        step: Callable[[Any], Any] = coroutine.send
        sent: object = None
        while True:
            try:
                waiting_for = step(sent)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            try:
                sent, step = outside.switch(waiting_for), coroutine.send
            except BaseException as thrown:  # noqa: BLE001  # a cancellation, or a failure of what was waited for
                sent, step = thrown, coroutine.throw


class GreenletRun(Generic[T]):
    """Awaitable: calls `function` in a `StepGreenlet` greenlet and gives what it returns or raises."""

    def __init__(self, function: Callable[[], T], at_edge: AtEdge) -> None:
        self.function = function
        self.at_edge = at_edge

    def __await__(self) -> Generator[asyncio.Future[Any], Any, T]:
        inside = StepGreenlet(self.function)
        inside.at_edge = self.at_edge
        inside.gr_context = getcurrent().gr_context  # one set of context variables on both sides
        waiting_for = inside.switch()
        while not inside.dead:
            try:
                sent = yield waiting_for
            except BaseException as thrown:  # noqa: BLE001  # belongs to the coroutine inside
                waiting_for = inside.throw(thrown)
            else:
                waiting_for = inside.switch(sent)
        return waiting_for  # type: ignore[no-any-return]  # what the function returned


def here() -> StepGreenlet | None:
    """Return the stepped greenlet that is running, or None in ordinary code."""
    current = getcurrent()
    return current if isinstance(current, StepGreenlet) else None
