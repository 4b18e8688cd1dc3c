"""Structured logs: one JSON object a line, ids and never contents."""

from __future__ import annotations

import logging
import sys

import structlog

OWN_WAYS = ("uvicorn", "uvicorn.error", "uvicorn.access")  # they come with handlers of their own
QUIET = ("httpx", "httpcore", "aiohttp.access", "celery.worker.strategy", "celery.app.trace", "amqp")


def setup(level: str = "INFO") -> None:
    """Send every logger of the process through structlog to standard error. Safe to call again.

    Celery's lines about each task received and finished are left out at INFO: Flower shows them, and they are the bulk.
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
    for name in OWN_WAYS:
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    for name in QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
