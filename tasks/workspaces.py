"""`turnline workspace create`, and the first workspace of `turnline up`."""

from __future__ import annotations

from uuid import UUID

from settings import Settings
from store import workspaces
from tasks.asking import asked


def create(settings: Settings, name: str) -> workspaces.Created:
    """Create the workspace `name` with a key that may do everything in it.

    Raises:
        SetupError: the name will not do, the database does not answer, or it was not migrated.
    """
    return asked(settings.database_url, lambda database: workspaces.create(database, name))


def timezone(settings: Settings, workspace_id: UUID, zone: str | None) -> str:
    """The workspace's time zone, set to `zone` where one is given.

    Raises:
        SetupError: there is no such workspace or zone, the database does not answer, or it was not migrated.
    """
    return asked(settings.database_url, lambda database: workspaces.timezone(database, workspace_id, zone))


def key_works(settings: Settings, api_key: str) -> bool:
    """Whether `api_key` is a key of this database.

    Raises:
        SetupError: the database does not answer, or was not migrated.
    """
    return asked(settings.database_url, lambda database: workspaces.caller_of(database, api_key)) is not None
