"""The task that runs one turn."""

from __future__ import annotations

import logging
from uuid import UUID

from structlog.contextvars import bound_contextvars

from failpoints import failpoint
from tasks.celery_app import app
from worker.resources import acquire
from worker.turn_runner import run_turn

log = logging.getLogger(__name__)


@app.task(name="turns.advance", queue="turns")
async def advance_turn(turn_id: str) -> None:
    """Run one turn to its next outcome. Safe to run twice, late, or with an unknown id."""
    try:
        wanted = UUID(turn_id)
    except (ValueError, AttributeError, TypeError):
        log.warning("Ignoring dispatch message: invalid turn id")
        return
    async with acquire() as resources:
        with bound_contextvars(turn_id=turn_id):
            failpoint("worker.message_received")
            if await run_turn(resources, wanted) is not None:
                failpoint("worker.before_ack")
