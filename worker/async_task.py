"""The base of our tasks: bodies may be `async def`, under every pool and in eager mode."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from celery import Task

from worker import greenlet_bridge

T = TypeVar("T")


class AsyncTask(Task):
    """A Celery task whose body may be `async def`. Give it to the app: `Celery(task_cls=AsyncTask)`.

    Under `worker.pool` the body runs as a coroutine beside thousands of others. Elsewhere (other pools, `apply()`, eager mode) the
    caller waits for it. In both, `self.request` and `current_task` are the body's own across awaits. A child `asyncio` task of the
    body has no `self.request`: read what it needs first.

    The body is wrapped when the class is made, before Celery adds its autoretry around `run`, which differs in order between
    `@app.task` and `app.register_task`; so `autoretry_for` works with both.
    """

    abstract = True

    def __init_subclass__(cls, **options: Any) -> None:
        """Replace an asynchronous `run` by one that waits."""
        super().__init_subclass__(**options)
        run = cls.__dict__.get("run")
        function = run.__func__ if isinstance(run, staticmethod) else run
        if inspect.isfunction(function) and inspect.iscoroutinefunction(inspect.unwrap(function)):
            waiting = _waiting(function)
            cls.run = staticmethod(waiting) if isinstance(run, staticmethod) else waiting  # type: ignore[method-assign]


def _waiting(body: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(body)
    def run(*args: Any, **kwargs: Any) -> Any:
        result = body(*args, **kwargs)
        return complete(result) if inspect.iscoroutine(result) else result  # a decorator may have waited already

    return run


def complete(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return what `coroutine` returns, waiting for it in the caller's greenlet.

    Raises:
        RuntimeError: the caller is a coroutine outside the pool, whose loop would be blocked.
    """
    stepped = greenlet_bridge.here()
    if stepped is not None:
        return stepped.wait(coroutine)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _drive(coroutine)
    coroutine.close()
    raise RuntimeError("an async task was called from inside an event loop: use `await asyncio.to_thread(task.apply, ...)`, or send it")


class _OwnLoop:
    """A thread's loop outside the pool, closed when the thread ends or the interpreter does."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.runner = asyncio.Runner()
        self.close = weakref.finalize(self, _close, self.runner)


def _close(runner: asyncio.Runner) -> None:
    """Close a loop that nobody runs any more. The collector may call this in any thread, in one that runs a loop of its own too."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        runner.close()
    else:
        runner.get_loop().close()  # without its last lap, which needs a thread without a running loop


class _PerThread(threading.local):
    loop: _OwnLoop | None = None


_per_thread = _PerThread()
_inherited: list[_OwnLoop] = []


def _drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run `coroutine` on this thread's own loop, which is kept for the next one: clients bound to it stay usable."""
    own = _per_thread.loop
    if own is not None and own.pid != os.getpid():  # a forked child shares its parent's selector: closing it here would deafen the parent
        own.close.detach()
        _inherited.append(own)
        own = None
    if own is None:
        own = _per_thread.loop = _OwnLoop()
    ended = False

    async def to_its_end() -> T:
        nonlocal ended
        try:
            return await coroutine
        finally:
            ended = True

    try:
        return own.runner.run(to_its_end(), context=contextvars.copy_context())
    except BaseException:
        if not ended:  # interrupted from outside, as by a prefork child's soft time limit: nothing of it may run on in the next task
            _per_thread.loop = None
            own.close()
        raise
