"""`turnline migrate`."""

from __future__ import annotations

import click
from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError

from cli.database import safe_url
from cli.errors import SetupError
from cli.options import require_settings
from cli.output import print_line
from settings import get_settings
from store import migrate as schema


@click.command()
def migrate() -> None:
    """Upgrade the database's schema.

    Connects to TURNLINE_OWNER_DATABASE_URL, or to DATABASE_URL if that is not set. Run it once per release, before anything else.
    """
    settings = require_settings(database=not get_settings().owner_database_url, broker=False)
    url = settings.owner_database_url or settings.database_url
    try:
        before = schema.current(url)
        schema.upgrade(url)
    except DBAPIError as error:
        raise SetupError(f"The database {safe_url(url)} could not be migrated: {str(error.orig).strip()}") from error
    except CommandError as error:
        raise SetupError(str(error)) from error
    after = schema.head()
    print_line(f"The database {safe_url(url)} is at revision {after}" + ("." if before == after else f"; it was at {before or 'none'}."))
