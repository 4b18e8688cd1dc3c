"""Intake through the broker: the door for web apps that speak Celery instead of HTTP."""

from __future__ import annotations

import logging
from typing import Any
from uuid import UUID

from celery.worker.request import Request

from engine.errors import Conflict, NotFound, Rejected
from failpoints import failpoint
from store.conversations import intake
from store.tenancy import workspace_of_session
from tasks.celery_app import app
from worker.resources import acquire

log = logging.getLogger(__name__)


class QuietRequest(Request):
    """A task whose arguments hold a customer's words: they are shown nowhere, whatever the producer put into the headers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._argsrepr = "(…)"
        self._kwargsrepr = "{…}"
        self._request_dict |= {"argsrepr": "(…)", "kwargsrepr": "{…}"}  # what Celery logs of a task that fails


@app.task(name="messages.receive", queue="messages", Request=QuietRequest)
async def receive(
    session_id: str, message_key: str, text: str, metadata: dict[str, Any] | None = None, strategy: str | None = None
) -> None:
    """Accept a customer's message. Safe to repeat with the same `message_key`.

    There is nobody to answer to: a message that cannot be accepted is recorded in the session's log as a `status_update`, where there is
    such a session, and in the worker's log by its ids.
    """
    async with acquire() as resources:
        session = None
        try:
            session = UUID(session_id)
            workspace_id = await workspace_of_session(resources.database, session)
        except (ValueError, AttributeError, TypeError):
            workspace_id = None
        if session is None or workspace_id is None:
            log.warning("a message for no session of ours was dropped", extra={"session_id": str(session or "no UUID")})
            return
        failpoint("intake.before_commit")
        try:
            accepted = await intake.accept(
                resources.database,
                workspace_id,
                session,
                text,
                message_key=message_key,
                metadata=metadata,
                strategy=strategy,
                window=resources.settings.workspace_in_flight,
            )
        except NotFound:  # it is being deleted
            log.warning("a message for no session of ours was dropped", extra={"session_id": str(session)})
            return
        except (Conflict, Rejected) as error:
            log.warning("a message was refused", extra={"session_id": str(session), "error_class": error.error_class})
            offset = await intake.record_refusal(resources.database, workspace_id, session, message_key, text, error)
            if offset is not None:
                resources.publisher.log_advanced(session, offset)
            return
        failpoint("intake.committed")
        resources.publisher.log_advanced(session, accepted.offset)
        if accepted.to_dispatch is not None:
            resources.dispatcher.dispatch(accepted.to_dispatch)
        failpoint("intake.dispatched")
