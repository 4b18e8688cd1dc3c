"""Intake: accept a customer's message, tell its readers, and dispatch its turn. Both HTTP and Celery use it."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from failpoints import failpoint
from realtime.publisher import Publisher
from store.conversations import intake
from store.conversations.intake import Accepted
from store.database import Database
from worker.dispatching import Dispatcher


async def accept_and_dispatch(
    database: Database,
    publisher: Publisher,
    dispatcher: Dispatcher,
    workspace_id: UUID,
    session_id: UUID,
    text: str,
    *,
    message_key: str | None = None,
    metadata: dict[str, Any] | None = None,
    strategy: str | None = None,
    in_flight_limit: int = 200,
    max_open: int | None = None,
) -> Accepted:
    """Accept a message, then publish that the log advanced and dispatch the turn if it was admitted.

    Safe to repeat with the same `message_key`. A repeat is published too: the process that accepted the message may have died before
    it could. Raises what `store.conversations.intake.accept` raises.
    """
    failpoint("intake.before_commit")
    accepted = await intake.accept(
        database,
        workspace_id,
        session_id,
        text,
        message_key=message_key,
        metadata=metadata,
        strategy=strategy,
        in_flight_limit=in_flight_limit,
        max_open=max_open,
    )
    failpoint("intake.committed")
    publisher.log_advanced(session_id, accepted.offset)
    if accepted.to_dispatch is not None:
        dispatcher.dispatch(accepted.to_dispatch)
    failpoint("intake.dispatched")
    return accepted
