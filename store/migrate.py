"""Upgrading a database's schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

ROOT = Path(__file__).resolve().parent.parent


def _config(url: str) -> Config:
    config = Config()  # no file: an installed package has none
    config.set_main_option("script_location", str(ROOT / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["url"] = url
    return config


def upgrade(url: str, revision: str = "head") -> None:
    """Upgrade the database at `url` (a login that may become turnline_owner) to `revision`."""
    command.upgrade(_config(url), revision)


def head() -> str:
    """Return the newest revision."""
    return ScriptDirectory.from_config(_config("")).get_current_head() or ""


def current(url: str, **connect_args: Any) -> str | None:
    """Return the revision of the database at `url`, or None if it was never migrated. Raises OperationalError if it is unreachable."""
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://", 1), connect_args={"connect_timeout": 5} | connect_args)
    try:
        with engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()
