"""One-off database queries for commands, with errors as sentences."""

from __future__ import annotations

import asyncio
import getpass
import os
from collections.abc import Awaitable, Callable
from typing import TypeVar
from urllib.parse import urlsplit
from uuid import UUID

import psycopg
from sqlalchemy.exc import DBAPIError

from cli.errors import SetupError
from engine.errors import NotFound, Rejected
from settings import Settings
from store import tenancy
from store.database import APP_ROLE, MAINTENANCE_ROLE, Database, connect_arguments

T = TypeVar("T")
Query = Callable[[Database], Awaitable[T]]


def safe_url(url: str) -> str:
    """Return `url` without user, password and options, for use in a message."""
    parts = urlsplit(url)
    return f"{parts.netloc.rpartition('@')[2]}{parts.path}"


def operator() -> str:
    """Return the name under which logs and rows record the user of this machine: "operator NAME"."""
    try:
        return f"operator {getpass.getuser()}"
    except (KeyError, OSError):  # in a container, a user id may have no name
        return f"operator with user id {os.getuid()}"


def maintenance_url(settings: Settings) -> str:
    """Return the URL of the login that may become turnline_maintenance."""
    return settings.maintenance_database_url or settings.database_url


def run_maintenance_query(settings: Settings, query: Query[T]) -> T:
    """Run `query` as turnline_maintenance, which sees all workspaces. Raises as `run_query` does."""
    return run_query(maintenance_url(settings), query, role=MAINTENANCE_ROLE)


def run_session_query(settings: Settings, session_id: UUID, query: Callable[[Database, UUID], Awaitable[T]]) -> T:
    """Return the result of `query`, called with a `Database` and the id of the session's workspace.

    Raises:
        SetupError: there is no such session; or as `run_query` does.
    """

    async def find_workspace_first(database: Database) -> T:
        workspace_id = await tenancy.workspace_of_session(database, session_id)
        if workspace_id is None:
            raise NotFound("no such session")
        return await query(database, workspace_id)

    try:
        return run_query(settings.database_url, find_workspace_first)
    except NotFound:
        raise SetupError(f"There is no session {session_id} in {safe_url(settings.database_url)}.") from None


def run_query(url: str, query: Query[T], *, role: str = APP_ROLE) -> T:
    """Return the result of `query`, called with a `Database` that acts as `role` and is closed afterwards.

    Raises:
        SetupError: the database does not answer or was not migrated, or the store rejected the request.
    """

    async def run() -> T:
        with psycopg.connect(url, **connect_arguments(role, "turnline-cli")):  # fails faster than the pool, and says why
            pass
        database = Database(url, role=role, pool_size=1, application_name="turnline-cli")
        await database.open()
        try:
            return await query(database)
        finally:
            await database.close()

    try:
        return asyncio.run(run())
    except Rejected as error:
        raise SetupError(str(error)) from error
    except (psycopg.Error, DBAPIError) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        not_migrated = isinstance(cause, (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedFunction))
        if not_migrated or f'role "{role}" does not exist' in str(cause):
            raise SetupError(f"The database {safe_url(url)} has not been migrated. Run `turnline migrate`.") from error
        raise SetupError(f"The database {safe_url(url)} does not answer: {str(cause).strip()}") from error
