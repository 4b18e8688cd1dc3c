"""Hooks that run when the worker's event loop starts and stops.

Imports nothing of Celery, so that registering a hook never imports `celery.concurrency` before `CELERY_CUSTOM_WORKER_POOL` is set.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

log = logging.getLogger(__name__)

Hook = TypeVar("Hook", bound=Callable[[], Awaitable[None]])

STOP_HOOK_S = 10.0  # a connection pool that does not close must not keep the worker from stopping

_on_start: list[Callable[[], Awaitable[None]]] = []
_on_stop: list[Callable[[], Awaitable[None]]] = []


def on_loop_start(hook: Hook) -> Hook:
    """Register a coroutine function to run on the pool's loop before the first task. Returns it, so it can be used as a decorator.

    Hooks run one after another in the order of registration. A hook that raises keeps the worker from starting.
    """
    if hook not in _on_start:
        _on_start.append(hook)
    return hook


def on_loop_stop(hook: Hook) -> Hook:
    """Register a coroutine function to run on the pool's loop after the last task has ended. Returns it.

    Hooks run one after another, the last registered first, each for at most `STOP_HOOK_S` seconds. A hook that raises is logged, and
    the others still run.
    """
    if hook not in _on_stop:
        _on_stop.append(hook)
    return hook


async def run_start_hooks() -> None:
    """Run the start hooks. Raises what a hook raises, without running the later ones."""
    for hook in _on_start:
        await hook()


async def run_stop_hooks() -> None:
    """Run the stop hooks. Never raises because of a hook."""
    for hook in reversed(_on_stop):
        try:
            async with asyncio.timeout(STOP_HOOK_S):
                await hook()
        except Exception:
            log.exception("Stop hook failed: %s", getattr(hook, "__qualname__", hook))
