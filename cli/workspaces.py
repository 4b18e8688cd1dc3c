"""`turnline workspace`: create workspaces, and show or set their time zone and retention."""

from __future__ import annotations

import json
from uuid import UUID

import click

from cli.database import run_query, safe_url
from cli.errors import SetupError
from cli.options import json_option, require_settings, workspace_id_argument
from engine.errors import NotFound
from settings import Settings
from store.catalog import workspaces
from store.database import Database


@click.group()
def workspace() -> None:
    """Create and configure workspaces, the tenants."""


@workspace.command("create")
@click.argument("name")
@json_option("Print one JSON object: workspace_id and api_key.")
def create(name: str, as_json: bool) -> None:
    """Create the workspace NAME with its first API key.

    The key may do everything in the workspace. It is shown only now.
    """
    created = create_workspace(require_settings(broker=False), name)
    if as_json:
        click.echo(json.dumps({"workspace_id": str(created.workspace_id), "api_key": created.api_key}))
    else:
        click.echo(f"Workspace {name}: {created.workspace_id}\nAPI key, shown only now: {created.api_key}")


@workspace.command("timezone")
@workspace_id_argument
@click.argument("zone", required=False)
def timezone(workspace_id: UUID, zone: str | None) -> None:
    """Show or set the time zone of the workspace ID.

    The days of its analytics are days of that zone.

    \b
    Example:
      turnline workspace timezone 0193e5b4-… Europe/Berlin
    """
    settings = require_settings(broker=False)
    click.echo(run_query(settings.database_url, lambda database: workspaces.timezone(database, workspace_id, zone)))


@workspace.command("retention")
@workspace_id_argument
@click.argument("days", type=click.IntRange(1, 365), required=False)
@click.option("--none", "unlimited", is_flag=True, help="Remove the workspace's limit; only those of its agents remain.")
def retention(workspace_id: UUID, days: int | None, unlimited: bool) -> None:
    """Show or set the DAYS for which the workspace ID keeps ended sessions.

    An agent with a shorter retention keeps its own.
    """
    if days is not None and unlimited:
        raise click.UsageError("Give DAYS or --none, not both.")
    settings = require_settings(broker=False)

    async def query(database: Database) -> int | None:
        async with database.transaction(workspace_id) as db:
            if unlimited or days is not None:
                await workspaces.set_retention_days(db, workspace_id, days)
            return await workspaces.retention_days(db, workspace_id)

    try:
        current = run_query(settings.database_url, query)
    except NotFound:
        raise SetupError(f"There is no workspace {workspace_id} in {safe_url(settings.database_url)}.") from None
    if current is None:
        click.echo(f"The workspace {workspace_id} keeps ended sessions as long as their agents say (data_retention_days).")
    else:
        click.echo(f"The workspace {workspace_id} keeps ended sessions for {current} days, or as long as their agents say, if shorter.")


def create_workspace(settings: Settings, name: str) -> workspaces.Created:
    """Create the workspace `name` with a key that may do everything in it.

    Raises:
        SetupError: the name is invalid, the database does not answer, or it was not migrated.
    """
    return run_query(settings.database_url, lambda database: workspaces.create(database, name))


def is_valid_key(settings: Settings, api_key: str) -> bool:
    """Return True if `api_key` is a key of this database.

    Raises:
        SetupError: the database does not answer, or was not migrated.
    """
    return run_query(settings.database_url, lambda database: workspaces.caller_of(database, api_key)) is not None
