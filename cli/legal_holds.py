"""`turnline hold` and `turnline unhold`: legal holds on sessions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import click
from sqlalchemy.ext.asyncio import AsyncConnection

from cli.database import operator, run_session_query
from cli.options import by_option, require_settings, session_id_argument
from settings import Settings
from store.conversations import sessions
from store.database import Database


@click.command()
@session_id_argument
@click.option("--reason", help="Shown with the session.")
@by_option
def hold(session_id: UUID, reason: str | None, by: str | None) -> None:
    """Place a legal hold on a session, so that it is not deleted.

    Neither its retention nor `turnline erase` deletes it until `turnline unhold`.
    """
    settings = require_settings(broker=False)
    session = _update(settings, session_id, lambda db: sessions.hold(db, session_id, reason, by=by or operator()))
    why = f": {session['hold_reason'].rstrip('.')}" if session["hold_reason"] else ""
    click.echo(f"The session {session_id} is on legal hold since {session['held_at']:%Y-%m-%d %H:%M:%S} UTC, by {session['held_by']}{why}.")


@click.command()
@session_id_argument
def unhold(session_id: UUID) -> None:
    """Lift the legal hold of a session.

    It is deleted when its retention ends.
    """
    _update(require_settings(broker=False), session_id, lambda db: sessions.unhold(db, session_id))
    click.echo(f"The session {session_id} is not on legal hold. It is deleted when its retention ends.")


def _update(settings: Settings, session_id: UUID, update: Callable[[AsyncConnection], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    """Return the result of `update`, called in a transaction of the session's workspace. Raises SetupError as `run_session_query`."""

    async def query(database: Database, workspace_id: UUID) -> dict[str, Any]:
        async with database.transaction(workspace_id) as db:
            return await update(db)

    return run_session_query(settings, session_id, query)
