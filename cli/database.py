"""One question to the database from the command line, with its foreseeable failures as sentences."""

from __future__ import annotations

import asyncio
import getpass
import os
from collections.abc import Awaitable, Callable
from typing import TypeVar
from urllib.parse import urlsplit

import psycopg
from sqlalchemy.exc import DBAPIError

from cli.errors import SetupError
from engine.errors import Rejected
from store.database import APP_ROLE, Database, connect_arguments

T = TypeVar("T")


def safe_url(url: str) -> str:
    """`url` for a sentence: without user, password and options."""
    parts = urlsplit(url)
    return f"{parts.netloc.rpartition('@')[2]}{parts.path}"


def operator() -> str:
    """Who is at the keyboard, as the log and the rows name an operator."""
    try:
        return f"operator {getpass.getuser()}"
    except (KeyError, OSError):  # a container's user need not have a name
        return f"operator with user id {os.getuid()}"


def run_query(url: str, ask: Callable[[Database], Awaitable[T]], *, role: str = APP_ROLE) -> T:
    """What `ask` returns, given a `Database` that acts as `role` and is closed afterwards.

    Raises:
        SetupError: the database does not answer or was not migrated, or the store refuses what was asked.
    """

    async def run() -> T:
        with psycopg.connect(url, **connect_arguments(role, "turnline-cli")):  # the pool would wait, and say less
            pass
        database = Database(url, role=role, pool_size=1, application_name="turnline-cli")
        await database.open()
        try:
            return await ask(database)
        finally:
            await database.close()

    try:
        return asyncio.run(run())
    except Rejected as error:
        raise SetupError(str(error)) from error
    except (psycopg.Error, DBAPIError) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        unknown = isinstance(cause, (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedFunction))
        if unknown or f'role "{role}" does not exist' in str(cause):
            raise SetupError(f"The database {safe_url(url)} has no tables or roles of ours. Run `turnline migrate`.") from error
        raise SetupError(f"The database {safe_url(url)} does not answer: {str(cause).strip()}") from error
