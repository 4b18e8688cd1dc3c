"""The migrations go up on an empty and on a full database, leave what the models say, and refuse what they cannot do in a sentence."""

from __future__ import annotations

import os
import subprocess
import sys

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError

from models import Base
from store import migrate
from store.database import Database
from tests.support.factories import tenant


def test_an_empty_database_goes_up_and_once_more(empty_database_url: str):
    assert migrate.current(empty_database_url) is None
    migrate.upgrade(empty_database_url)
    migrate.upgrade(empty_database_url)
    assert migrate.current(empty_database_url) == migrate.head()


def test_the_migrated_schema_is_the_models(database_url: str):
    engine = create_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


async def test_a_full_database_goes_up(empty_database_url: str):
    """From the first revision there is, with rows in the tables."""
    migrate.upgrade(empty_database_url, "0016")
    database = Database(empty_database_url, pool_size=1)
    await database.open()
    made = await tenant(database, sessions=50, tools=({"name": "x", "integration": {}},))
    await database.close()

    migrate.upgrade(empty_database_url)

    with psycopg.connect(empty_database_url) as db:
        assert db.execute("SELECT count(*) FROM sessions WHERE workspace_id = %s", (made.workspace_id,)).fetchone() == (50,)


def test_a_migration_does_not_queue_behind_whoever_holds_a_lock(empty_database_url: str):
    """It gives up after its lock_timeout instead of making every turn wait behind it, and leaves nothing half done."""
    migrate.upgrade(empty_database_url, "base")
    with psycopg.connect(empty_database_url) as other:
        other.execute("CREATE TABLE turns ()")  # not committed: whoever makes a table of this name waits for it
        with pytest.raises(OperationalError, match="lock timeout"):
            migrate.upgrade(empty_database_url)
        other.rollback()
    with psycopg.connect(empty_database_url) as db:
        assert db.execute("SELECT to_regclass('users')").fetchone() == (None,)
    migrate.upgrade(empty_database_url)
    assert migrate.current(empty_database_url) == migrate.head()


@pytest.mark.parametrize(
    ("revision", "said"),
    [
        ("0001", "This database is at revision 0001, from before 0.1.0, and cannot be upgraded: create a new one."),
        ("0015", "This database is at revision 0015, from before 0.1.0, and cannot be upgraded: create a new one."),
        ("9999", "This database is at revision 9999, which this version of Turnline does not know: run the version that made it."),
    ],
)
def test_a_revision_that_no_migration_leads_on_from_is_refused_in_a_sentence(empty_database_url: str, revision: str, said: str):
    migrate.upgrade(empty_database_url)
    with psycopg.connect(empty_database_url) as db:
        db.execute("UPDATE alembic_version SET version_num = %s", (revision,))
    with pytest.raises(CommandError) as refused:
        migrate.upgrade(empty_database_url)
    assert str(refused.value) == said
    assert migrate.current(empty_database_url) == revision


@pytest.mark.parametrize("to", ["base", "-1"])
def test_a_downgrade_is_refused_in_a_sentence_and_changes_nothing(database_url: str, to: str):
    asked = subprocess.run(
        [sys.executable, "-m", "alembic", "downgrade", to],
        cwd=migrate.ROOT,
        env=os.environ | {"TURNLINE_OWNER_DATABASE_URL": database_url},
        capture_output=True,
        text=True,
    )
    assert asked.returncode != 0
    assert "Traceback" not in asked.stderr
    assert "Turnline does not support downgrades: restore a backup from before the upgrade." in asked.stderr + asked.stdout
    assert migrate.current(database_url) == migrate.head()


def test_every_migration_refuses_to_be_taken_back():
    for script in ScriptDirectory(str(migrate.ROOT / "migrations")).walk_revisions():
        with pytest.raises(CommandError, match="does not support downgrades"):
            script.module.downgrade()
