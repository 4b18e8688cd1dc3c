"""Awaiting coroutines from ordinary functions, by means of greenlets.

Celery's tracer is an ordinary function that calls the task's body. To let that body be a coroutine, the tracer runs in a greenlet, and
the coroutine is driven inside that same greenlet: whatever it awaits is handed out to the asyncio task around the greenlet. Because the
greenlet does not change, everything that Celery keys by greenlet (`task.request`, `current_task`) stays right across awaits. SQLAlchemy's
asyncio extension does the same with `greenlet_spawn` and `await_only`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

from greenlet import getcurrent, greenlet

T = TypeVar("T")

ReplaceEnd = Callable[[BaseException | None], BaseException | None]
"""Called whenever a coroutine ends in the greenlet, with what it raised, or None. The exception it returns is raised instead; None
leaves the coroutine's own result or exception."""


class AsyncGreenlet(greenlet):  # type: ignore[misc]  # greenlet has no types
    """A greenlet whose function may await coroutines on the loop around it."""

    replace_end: ReplaceEnd

    def await_(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Return the result of `coroutine`. Only to be called inside this greenlet."""
        try:
            result = self._drive(coroutine)
        except BaseException as raised:
            instead = self.replace_end(raised)
            if instead is None or instead is raised:
                raise
            raise instead from raised
        instead = self.replace_end(None)
        if instead is not None:
            raise instead
        return result

    def _drive(self, coroutine: Coroutine[Any, Any, T]) -> T:
        outside = self.parent
        step: Callable[[Any], Any] = coroutine.send
        sent: object = None
        while True:
            try:
                awaited = step(sent)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            try:
                sent, step = outside.switch(awaited), coroutine.send
            except BaseException as thrown:  # noqa: BLE001  # a cancellation, or the failure of what was awaited
                sent, step = thrown, coroutine.throw


class GreenletCall(Generic[T]):
    """An awaitable that calls `function` in an `AsyncGreenlet`, and returns or raises what it does."""

    def __init__(self, function: Callable[[], T], replace_end: ReplaceEnd) -> None:
        self.function = function
        self.replace_end = replace_end

    def __await__(self) -> Generator[asyncio.Future[Any], Any, T]:
        inside = AsyncGreenlet(self.function)
        inside.replace_end = self.replace_end
        inside.gr_context = getcurrent().gr_context  # one set of context variables on both sides
        awaited = inside.switch()
        while not inside.dead:
            try:
                sent = yield awaited
            except BaseException as thrown:  # noqa: BLE001  # meant for the coroutine inside
                awaited = inside.throw(thrown)
            else:
                awaited = inside.switch(sent)
        return awaited  # type: ignore[no-any-return]  # the function's return value


def current() -> AsyncGreenlet | None:
    """Return the running AsyncGreenlet, or None in ordinary code."""
    running = getcurrent()
    return running if isinstance(running, AsyncGreenlet) else None
