"""`turnline workspace create` and `retention`, and the first workspace of `turnline up`."""

from __future__ import annotations

from uuid import UUID

from cli.database import run_query, safe_url
from cli.errors import SetupError
from engine.errors import NotFound
from settings import Settings
from store.catalog import workspaces
from store.database import Database


def create(settings: Settings, name: str) -> workspaces.Created:
    """Create the workspace `name` with a key that may do everything in it.

    Raises:
        SetupError: the name will not do, the database does not answer, or it was not migrated.
    """
    return run_query(settings.database_url, lambda database: workspaces.create(database, name))


def timezone(settings: Settings, workspace_id: UUID, zone: str | None) -> str:
    """The workspace's time zone, set to `zone` where one is given.

    Raises:
        SetupError: there is no such workspace or zone, the database does not answer, or it was not migrated.
    """
    return run_query(settings.database_url, lambda database: workspaces.timezone(database, workspace_id, zone))


def retention(settings: Settings, workspace_id: UUID, days: int | None, *, change: bool) -> str:
    """Show for how many days a workspace keeps sessions that have ended, having set it to `days` where it is to `change`; a sentence.

    Raises:
        SetupError: there is no such workspace, or the database does not answer.
    """

    async def ask(database: Database) -> int | None:
        async with database.transaction(workspace_id) as db:
            if change:
                await workspaces.set_retention_days(db, workspace_id, days)
            return await workspaces.retention_days(db, workspace_id)

    try:
        kept = run_query(settings.database_url, ask)
    except NotFound:
        raise SetupError(f"There is no workspace {workspace_id} in {safe_url(settings.database_url)}.") from None
    if kept is None:
        return f"The workspace {workspace_id} keeps sessions that have ended as long as their agents say (data_retention_days)."
    return (
        f"The workspace {workspace_id} keeps sessions that have ended for {kept} days, or as long as their agents say, if that is shorter."
    )


def key_works(settings: Settings, api_key: str) -> bool:
    """Whether `api_key` is a key of this database.

    Raises:
        SetupError: the database does not answer, or was not migrated.
    """
    return run_query(settings.database_url, lambda database: workspaces.caller_of(database, api_key)) is not None
