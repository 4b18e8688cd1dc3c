"""Structured logs: one JSON object per line, with ids and never with contents."""

from __future__ import annotations

import logging
import sys

import structlog

WITH_HANDLERS = ("uvicorn", "uvicorn.error", "uvicorn.access")  # uvicorn installs handlers of its own
QUIET = ("httpx", "httpcore", "aiohttp.access", "celery.worker.strategy", "celery.app.trace", "amqp")


def setup(level: str = "INFO") -> None:
    """Send every logger of the process through structlog to standard error. Safe to call again.

    Celery's INFO lines about each task received and finished are suppressed: they would be most of the log, and Flower shows them.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(ensure_ascii=False),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in WITH_HANDLERS:
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    for name in QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
