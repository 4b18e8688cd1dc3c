"""`turnline redrive` and `turnline release`: what an operator does about dead turns, through the database."""

from __future__ import annotations

from uuid import UUID

from cli.database import operator, run_query, safe_url
from cli.errors import SetupError
from engine.errors import Conflict, NotFound
from settings import Settings
from store import tenancy
from store.conversations import redrive as store_redrive
from store.database import Database


def redrive(settings: Settings, turn_id: UUID, *, from_scratch: bool, by: str | None) -> str:
    """Open a failed or dead turn again, as `repair.redrive` does; what will happen now, in sentences.

    Raises:
        SetupError: there is no such turn, it cannot be redriven, or the database does not answer.
    """

    async def ask(database: Database) -> store_redrive.Redriven:
        workspace_id = await tenancy.workspace_of_turn(database, turn_id)
        if workspace_id is None:
            raise NotFound("no such turn")
        return await store_redrive.redrive(
            database, workspace_id, turn_id, from_scratch=from_scratch, by=by or operator(), window=settings.workspace_in_flight
        )

    try:
        done = run_query(settings.database_url, ask)
    except NotFound:
        raise SetupError(f"There is no turn {turn_id} in {safe_url(settings.database_url)}.") from None
    except Conflict as error:
        raise SetupError(f"The turn {turn_id} was not redriven: {error}.") from None
    start = "from its messages again, with the agent as it is now" if from_scratch else "from its last step; what it had done stands"
    return f"The turn {turn_id} is open again and begins {start}.\n{_following(settings, done.to_dispatch)}"


def release(settings: Settings, session_id: UUID, *, by: str | None) -> str:
    """Lift a session's quarantine; what will happen now, in sentences.

    Raises:
        SetupError: there is no such session, or the database does not answer.
    """

    async def ask(database: Database) -> store_redrive.Released:
        workspace_id = await tenancy.workspace_of_session(database, session_id)
        if workspace_id is None:
            raise NotFound("no such session")
        return await store_redrive.release(database, workspace_id, session_id, by=by or operator(), window=settings.workspace_in_flight)

    try:
        done = run_query(settings.database_url, ask)
    except NotFound:
        raise SetupError(f"There is no session {session_id} in {safe_url(settings.database_url)}.") from None
    if done.offset is None:
        return f"The session {session_id} is not quarantined. Nothing was changed."
    said = f"The session {session_id} goes on. Its dead turns stay dead; redrive those that shall be answered."
    return f"{said}\n{_following(settings, done.to_dispatch)}"


def _following(settings: Settings, turn_id: UUID | None) -> str:
    """Ring, and say what comes next."""
    if turn_id is None:
        return "Nothing of the session can be carried at the moment: it is paused, or its workspace has no room; it is rung when that ends."
    if not settings.broker_url:
        return f"No broker is configured here, so the sweep will ring for the turn {turn_id}, within a few seconds."
    from tasks.celery_app import make_app
    from tasks.dispatcher import publish

    app = make_app(settings)
    try:
        publish(app, [(turn_id, 0)])
    except Exception as error:  # noqa: BLE001 - whatever the broker does, the turn is open and the sweep will ring
        return f"The broker took no ring ({type(error).__name__}). The sweep will ring for the turn {turn_id} once the broker is back."
    finally:
        app.close()
    return f"The turn {turn_id} was rung. Should no worker hear it, the sweep rings again."
