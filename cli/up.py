"""`turnline up`."""

from __future__ import annotations

import sys

import click

from cli import workspaces
from cli.output import print_line
from cli.standalone import stack
from cli.standalone.data_dir import DataDir
from cli.standalone.supervisor import StopRequested
from settings import Settings, get_settings


@click.command()
def up() -> None:
    """Run everything on this machine: servers, API, workers, beat and Flower.

    Postgres and Valkey are embedded, with their data in .turnline/, unless DATABASE_URL and CELERY_BROKER_URL are set. Without
    OPENAI_API_KEY and OPENAI_BASE_URL, the sandbox answers in place of a model. Processes that die are restarted.

    Ctrl-C stops everything; the next `turnline up` continues with the same data.
    """
    try:
        stack.up(get_settings(), print_line, ensure_api_key)
    except StopRequested:
        sys.exit(130)


def ensure_api_key(settings: Settings, data_dir: DataDir) -> tuple[str, bool]:
    """Return an API key of the workspace "default", and True if it was created just now.

    Raises:
        SetupError: the database does not answer, or was not migrated.
    """
    stored = data_dir.secrets().api_key
    if stored and workspaces.is_valid_key(settings, stored):
        return stored, False
    created = workspaces.create_workspace(settings, "default")
    data_dir.save_api_key(str(created.workspace_id), created.api_key)
    return created.api_key, True
