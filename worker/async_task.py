"""The base class of our tasks: bodies may be `async def`, under every pool and in eager mode."""

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
    caller blocks until it ends. In both, `self.request` and `current_task` stay the body's own across awaits. A child `asyncio` task of
    the body has no `self.request`: read what it needs before creating it.

    The body is wrapped when the class is created, before Celery adds its autoretry around `run`, which happens in a different order for
    `@app.task` and `app.register_task`; so `autoretry_for` works with both.
    """

    abstract = True

    def __init_subclass__(cls, **options: Any) -> None:
        """Replace an asynchronous `run` by one that blocks until the coroutine ends."""
        super().__init_subclass__(**options)
        run = cls.__dict__.get("run")
        function = run.__func__ if isinstance(run, staticmethod) else run
        if inspect.isfunction(function) and inspect.iscoroutinefunction(inspect.unwrap(function)):
            blocking = _blocking(function)
            cls.run = staticmethod(blocking) if isinstance(run, staticmethod) else blocking  # type: ignore[method-assign]


def _blocking(body: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(body)
    def run(*args: Any, **kwargs: Any) -> Any:
        result = body(*args, **kwargs)
        return complete(result) if inspect.iscoroutine(result) else result  # a decorator may have completed it already

    return run


def complete(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run `coroutine` to its end and return its result, blocking only the caller's greenlet.

    Raises:
        RuntimeError: the caller is a coroutine outside the pool, whose loop would be blocked.
    """
    running = greenlet_bridge.current()
    if running is not None:
        return running.await_(coroutine)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _run_on_own_loop(coroutine)
    coroutine.close()
    raise RuntimeError("an async task was called from inside an event loop: use `await asyncio.to_thread(task.apply, ...)`, or send it")


class _OwnLoop:
    """A thread's event loop outside the pool, closed when the thread or the interpreter ends."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.runner = asyncio.Runner()
        self.close = weakref.finalize(self, _close, self.runner)


def _close(runner: asyncio.Runner) -> None:
    """Close a loop that nothing runs any more. The garbage collector may call this in any thread, also in one whose loop is running."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        runner.close()
    else:
        runner.get_loop().close()  # without cancelling its tasks, which needs a thread without a running loop


class _PerThread(threading.local):
    loop: _OwnLoop | None = None


_per_thread = _PerThread()
_inherited: list[_OwnLoop] = []


def _run_on_own_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run `coroutine` on this thread's own loop, which is kept for the next call: clients bound to it stay usable."""
    own = _per_thread.loop
    if own is not None and own.pid != os.getpid():  # a forked child shares its parent's selector: closing it would break the parent's
        own.close.detach()
        _inherited.append(own)
        own = None
    if own is None:
        own = _per_thread.loop = _OwnLoop()
    ended = False

    async def run_to_end() -> T:
        nonlocal ended
        try:
            return await coroutine
        finally:
            ended = True

    try:
        return own.runner.run(run_to_end(), context=contextvars.copy_context())
    except BaseException:
        if not ended:  # interrupted from outside, as by a prefork child's soft time limit: nothing of it may continue in the next task
            _per_thread.loop = None
            own.close()
        raise
