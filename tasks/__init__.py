"""Who runs it: the Celery app, its worker pool, thin tasks, the command line."""

from __future__ import annotations

from typing import Any

__all__ = ["app"]


def __getattr__(name: str) -> Any:
    """`app`, made when it is first asked for: `celery -A tasks` finds it, and importing a module of this package makes none."""
    if name == "app":
        from tasks.celery_app import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
