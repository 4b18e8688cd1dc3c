"""What is opened when the worker's loop starts and closed when it stops.

Imports nothing of Celery, so that registering a hook never imports `celery.concurrency` before
`CELERY_CUSTOM_WORKER_POOL` is set.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

log = logging.getLogger(__name__)

Hook = TypeVar("Hook", bound=Callable[[], Awaitable[None]])

STOP_HOOK_S = 10.0  # a pool that will not close must not keep the worker from stopping

_on_start: list[Callable[[], Awaitable[None]]] = []
_on_stop: list[Callable[[], Awaitable[None]]] = []


def on_loop_start(hook: Hook) -> Hook:
    """Register a coroutine function to run on the pool's loop before the first task; return it, so that it serves as a decorator.

    Hooks run one after another in the order of registration. One that raises keeps the worker from starting.
    """
    if hook not in _on_start:
        _on_start.append(hook)
    return hook


def on_loop_stop(hook: Hook) -> Hook:
    """Register a coroutine function to run on the pool's loop after the last task has finished; return it.

    Hooks run one after another, the last registered first, each for at most `STOP_HOOK_S` seconds. One that raises is logged,
    and the others still run.
    """
    if hook not in _on_stop:
        _on_stop.append(hook)
    return hook


async def started() -> None:
    """Run the start hooks. Raises what a hook raises; later hooks are then not run."""
    for hook in _on_start:
        await hook()


async def stopped() -> None:
    """Run the stop hooks. Never raises for what a hook did."""
    for hook in reversed(_on_stop):
        try:
            async with asyncio.timeout(STOP_HOOK_S):
                await hook()
        except Exception:
            log.exception("A hook for the loop's stop failed: %s", getattr(hook, "__qualname__", hook))
