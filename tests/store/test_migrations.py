"""The migrations go up on an empty and on a full database, and leave what the models say."""

from __future__ import annotations

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
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
    """From the first revision that has tables, with rows in them, and a reader at work."""
    migrate.upgrade(empty_database_url, "0002")
    database = Database(empty_database_url, pool_size=1)
    await database.open()
    made = await tenant(database, sessions=50, tools=({"name": "x", "integration": {}},))
    await database.close()

    migrate.upgrade(empty_database_url)

    with psycopg.connect(empty_database_url) as db:
        assert db.execute("SELECT count(*) FROM sessions WHERE workspace_id = %s", (made.workspace_id,)).fetchone() == (50,)


def test_a_migration_does_not_queue_behind_a_long_reader(empty_database_url: str):
    """It gives up after its lock_timeout instead of making every turn wait behind it."""
    migrate.upgrade(empty_database_url, "0001")
    with psycopg.connect(empty_database_url) as reader:
        reader.execute("SELECT * FROM sessions")
        with pytest.raises(OperationalError, match="lock timeout"):
            migrate.upgrade(empty_database_url)
    migrate.upgrade(empty_database_url)
    assert migrate.current(empty_database_url) == migrate.head()


def test_policies_for_the_audit_give_up_behind_a_long_reader_and_go_on_later(empty_database_url: str):
    migrate.upgrade(empty_database_url, "0003")
    with psycopg.connect(empty_database_url) as reader:
        reader.execute("SELECT * FROM tool_calls")  # two tables have their policy before this one's turn comes
        with pytest.raises(OperationalError, match="lock timeout"):
            migrate.upgrade(empty_database_url, "0004")
        assert reader.execute("SELECT count(*) FROM pg_policies WHERE policyname = 'maintenance' AND tablename = 'events'").fetchone() == (
            1,
        )
    assert migrate.current(empty_database_url) == "0003"

    migrate.upgrade(empty_database_url, "0004")
    assert migrate.current(empty_database_url) == "0004"
