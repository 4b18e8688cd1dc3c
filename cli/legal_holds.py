"""`turnline hold` and `turnline unhold`, through the database."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from cli.database import operator, run_query, safe_url
from cli.errors import SetupError
from engine.errors import NotFound
from settings import Settings
from store import tenancy
from store.conversations import sessions
from store.database import Database


def hold(settings: Settings, session_id: UUID, *, reason: str | None, by: str | None) -> str:
    """Hold a session; a sentence about it. Raises SetupError where there is no such session, or the database does not answer."""
    who = by or operator()
    session = _changed(settings, session_id, lambda db: sessions.hold(db, session_id, reason, by=who))
    why = f": {session['hold_reason'].rstrip('.')}" if session["hold_reason"] else ""
    return f"The session {session_id} is held since {session['held_at']:%Y-%m-%d %H:%M:%S} UTC, by {session['held_by']}{why}."


def unhold(settings: Settings, session_id: UUID) -> str:
    """Let a session go; a sentence about it. Raises as `hold`."""
    _changed(settings, session_id, lambda db: sessions.unhold(db, session_id))
    return f"The session {session_id} is not held. It is deleted when its retention is over."


def _changed(settings: Settings, session_id: UUID, change: Callable[[AsyncConnection], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    async def ask(database: Database) -> dict[str, Any]:
        workspace_id = await tenancy.workspace_of_session(database, session_id)
        if workspace_id is None:
            raise NotFound("no such session")
        async with database.transaction(workspace_id) as db:
            return await change(db)

    try:
        return run_query(settings.database_url, ask)
    except NotFound:
        raise SetupError(f"There is no session {session_id} in {safe_url(settings.database_url)}.") from None
