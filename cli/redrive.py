"""`turnline redrive` and `turnline release`: failed and dead turns, and the quarantine of their sessions."""

from __future__ import annotations

from uuid import UUID

import click

from cli.database import operator, run_query, run_session_query, safe_url
from cli.errors import SetupError
from cli.options import by_option, require_settings, session_id_argument, turn_id_argument
from engine.errors import Conflict, NotFound
from settings import Settings
from store import tenancy
from store.conversations import redrive as store_redrive
from store.database import Database
from tasks.celery_app import make_app
from tasks.dispatcher import publish


@click.command()
@turn_id_argument
@click.option("--from-scratch", is_flag=True, help="Start from its messages, with the current agent. Not if an unsafe tool has run.")
@by_option
def redrive(turn_id: UUID, from_scratch: bool, by: str | None) -> None:
    """Run a failed or dead turn again.

    The turn ID continues from its last step, so that completed tool calls are not repeated. Lifts the quarantine of its session.
    """
    click.echo(redrive_turn(require_settings(broker=False), turn_id, from_scratch=from_scratch, by=by))


@click.command()
@session_id_argument
@by_option
def release(session_id: UUID, by: str | None) -> None:
    """Lift the quarantine of a session.

    Its open turns run again. Its dead turns stay dead: redrive those that should be answered.
    """
    click.echo(release_session(require_settings(broker=False), session_id, by=by))


def redrive_turn(settings: Settings, turn_id: UUID, *, from_scratch: bool, by: str | None) -> str:
    """Redrive the turn, and return sentences about what happens next.

    Raises:
        SetupError: there is no such turn, it cannot be redriven, or the database does not answer.
    """

    async def query(database: Database) -> store_redrive.Redriven:
        workspace_id = await tenancy.workspace_of_turn(database, turn_id)
        if workspace_id is None:
            raise NotFound("no such turn")
        return await store_redrive.redrive(
            database, workspace_id, turn_id, from_scratch=from_scratch, by=by or operator(), in_flight_limit=settings.workspace_in_flight
        )

    try:
        redriven = run_query(settings.database_url, query)
    except NotFound:
        raise SetupError(f"There is no turn {turn_id} in {safe_url(settings.database_url)}.") from None
    except Conflict as error:
        raise SetupError(f"The turn {turn_id} was not redriven: {error}.") from None
    start = "from its messages, with the current agent" if from_scratch else "from its last step; completed steps are kept"
    return f"The turn {turn_id} is open again and starts {start}.\n{_dispatch(settings, redriven.to_dispatch)}"


def release_session(settings: Settings, session_id: UUID, *, by: str | None) -> str:
    """Lift the session's quarantine, and return sentences about what happens next.

    Raises:
        SetupError: there is no such session, or the database does not answer.
    """

    async def query(database: Database, workspace_id: UUID) -> store_redrive.Released:
        return await store_redrive.release(
            database, workspace_id, session_id, by=by or operator(), in_flight_limit=settings.workspace_in_flight
        )

    released = run_session_query(settings, session_id, query)
    if released.offset is None:
        return f"The session {session_id} is not quarantined. Nothing was changed."
    return (
        f"The session {session_id} is released. Its dead turns stay dead; redrive those that should be answered.\n"
        f"{_dispatch(settings, released.to_dispatch)}"
    )


def _dispatch(settings: Settings, turn_id: UUID | None) -> str:
    """Dispatch the turn if there is one, and return a sentence about it. A dispatch that fails is left to the sweep."""
    if turn_id is None:
        return (
            "No turn of the session can run now: the session is paused, or its workspace is at its in-flight limit. "
            "The next turn is dispatched when that ends."
        )
    if not settings.broker_url:
        return f"No broker is configured here, so the sweep will dispatch the turn {turn_id}, within a few seconds."
    app = make_app(settings)
    try:
        publish(app, [(turn_id, 0)])
    except Exception as error:  # noqa: BLE001 - whatever the broker does, the turn is open and the sweep will dispatch it
        return f"The broker does not answer ({type(error).__name__}). The sweep will dispatch the turn {turn_id} once it is back."
    finally:
        app.close()
    return f"The turn {turn_id} was dispatched. If the message is lost, the sweep dispatches it again."
