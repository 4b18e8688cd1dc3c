"""The task that accepts customers' messages from applications that use Celery instead of HTTP."""

from __future__ import annotations

import logging
from typing import Any
from uuid import UUID

from celery.worker.request import Request

from engine.errors import Conflict, NotFound, Rejected
from store.conversations import intake
from store.tenancy import workspace_of_session
from tasks.celery_app import app
from tasks.intake import accept_and_dispatch
from worker.resources import acquire

log = logging.getLogger(__name__)


class QuietRequest(Request):
    """A task request whose arguments contain a customer's text: they are never shown, whatever the producer put into the headers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._argsrepr = "(…)"
        self._kwargsrepr = "{…}"
        self._request_dict |= {"argsrepr": "(…)", "kwargsrepr": "{…}"}  # Celery logs these when a task fails


@app.task(name="messages.receive", queue="messages", Request=QuietRequest)
async def receive(
    session_id: str, message_key: str, text: str, metadata: dict[str, Any] | None = None, strategy: str | None = None
) -> None:
    """Accept a customer's message. Safe to repeat with the same `message_key`.

    The sender gets no response. A message that is refused is recorded as a `status_update` in the session's log, and in the worker's
    log by its ids; one for an unknown session only in the worker's log.
    """
    async with acquire() as resources:
        session = _parse(session_id)
        workspace_id = await workspace_of_session(resources.database, session) if session is not None else None
        if session is None or workspace_id is None:
            _log_unknown(session)
            return
        try:
            await accept_and_dispatch(
                resources.database,
                resources.publisher,
                resources.dispatcher,
                workspace_id,
                session,
                text,
                message_key=message_key,
                metadata=metadata,
                strategy=strategy,
                in_flight_limit=resources.settings.workspace_in_flight,
            )
        except NotFound:  # the session is being deleted
            _log_unknown(session)
        except (Conflict, Rejected) as error:
            log.warning("Refusing a message", extra={"session_id": str(session), "error_class": error.error_class})
            offset = await intake.record_refusal(resources.database, workspace_id, session, message_key, text, error)
            if offset is not None:
                resources.publisher.log_advanced(session, offset)


def _parse(session_id: object) -> UUID | None:
    try:
        return UUID(session_id)  # type: ignore[arg-type]  # the message may hold anything
    except (ValueError, AttributeError, TypeError):
        return None


def _log_unknown(session_id: UUID | None) -> None:
    log.warning("Ignoring a message: unknown session", extra={"session_id": str(session_id or "not a UUID")})
