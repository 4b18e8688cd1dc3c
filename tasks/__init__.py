"""The Celery app, its tasks and the dispatcher. A file is named after the prefix of its tasks: `turns.advance` is in `turns.py`."""

from __future__ import annotations

from typing import Any

__all__ = ["app"]


def __getattr__(name: str) -> Any:
    """Return `app`, created on first access: `celery -A tasks` finds it, and importing a module of this package does not create it."""
    if name == "app":
        from tasks.celery_app import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
