"""The dispatcher, as the worker sees it. `tasks.celery_app` hands in how to create one, so that worker/ does not import tasks/."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol
from uuid import UUID

from settings import Settings


class Dispatcher(Protocol):
    """Publishes `turns.advance` for turns. Implemented by `tasks.dispatcher.Dispatcher`."""

    def start(self) -> None:
        """Start publishing."""

    def dispatch(self, turn_id: UUID) -> None:
        """Publish `turns.advance(turn_id)` soon. Never blocks and never raises."""

    def close(self) -> None:
        """Publish what is queued, and stop."""


DispatcherFactory = Callable[[Settings], Dispatcher]

_factory: DispatcherFactory | None = None


def set_factory(factory: DispatcherFactory) -> None:
    """Use `factory` for every dispatcher that this process creates from now on."""
    global _factory
    _factory = factory


def create(settings: Settings) -> Dispatcher:
    """Return a new dispatcher, not started.

    Raises:
        RuntimeError: no factory was set; importing `tasks.celery_app` sets it.
    """
    if _factory is None:
        raise RuntimeError("No dispatcher factory is set: import tasks.celery_app first.")
    return _factory(settings)
