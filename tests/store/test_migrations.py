"""Migrations upgrade an empty and a full database to the schema of the models, and refuse unknown revisions and downgrades."""

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
from sqlalchemy.exc import DBAPIError, OperationalError

from models import Base
from store import migrate
from store.database import Database
from tests.support.factories import tenant


def test_upgrade_of_empty_database_is_repeatable(empty_database_url: str):
    assert migrate.current(empty_database_url) is None
    migrate.upgrade(empty_database_url)
    migrate.upgrade(empty_database_url)
    assert migrate.current(empty_database_url) == migrate.head()


def test_migrated_schema_equals_models(database_url: str):
    engine = create_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


async def test_upgrade_of_full_database(empty_database_url: str):
    """From the first revision, with rows in the tables."""
    migrate.upgrade(empty_database_url, "0016")
    database = Database(empty_database_url, pool_size=1)
    await database.open()
    made = await tenant(database, sessions=50, tools=({"name": "x", "integration": {}},))
    await database.close()

    migrate.upgrade(empty_database_url)

    with psycopg.connect(empty_database_url) as db:
        assert db.execute("SELECT count(*) FROM sessions WHERE workspace_id = %s", (made.workspace_id,)).fetchone() == (50,)


# Turns of revision 0016: status, place, settled.
OLD_TURNS = [
    ("queued", "behind", False),
    ("running", "granted", False),
    ("queued", "waiting", False),
    ("done", "granted", True),
    ("cancelled", "behind", True),
    ("dead", "waiting", True),
]
ADMISSION = {"behind": "blocked", "waiting": "pending", "granted": "admitted"}
ADMITTED_AT = "2026-01-01 00:00:00+00"


async def old_turns(url: str, *, settled: int = 0) -> None:
    """Make `OLD_TURNS` and `settled` more settled turns in a database at revision 0016."""
    migrate.upgrade(url, "0016")
    database = Database(url, pool_size=1)
    await database.open()
    made = await tenant(database, sessions=len(OLD_TURNS) + 1)
    await database.close()
    with psycopg.connect(url) as db:
        db.execute("SET session_replication_role = replica")  # so that no trigger inserts usage facts for these
        for session_id, (status, place, is_settled) in zip(made.session_ids, OLD_TURNS, strict=False):
            db.execute(
                "INSERT INTO turns (workspace_id, session_id, status, place, opened_at_offset, granted_at, settled_at)"
                " VALUES (%s, %s, %s, %s, 0, %s, CASE WHEN %s THEN now() END)",
                (made.workspace_id, session_id, status, place, ADMITTED_AT, is_settled),
            )
        db.execute(
            "INSERT INTO turns (workspace_id, session_id, status, place, opened_at_offset, granted_at, settled_at)"
            " SELECT %s, %s, 'done', 'granted', n, %s, now() FROM generate_series(1, %s) n",
            (made.workspace_id, made.session_ids[-1], ADMITTED_AT, settled),
        )


def assert_renamed(url: str) -> None:
    with psycopg.connect(url) as db:
        by_status = "SELECT status, admission FROM turns WHERE opened_at_offset = 0 ORDER BY id"
        assert db.execute(by_status).fetchall() == [(status, ADMISSION[place]) for status, place, _ in OLD_TURNS]
        assert db.execute("SELECT count(*) FROM turns WHERE admission <> 'admitted' AND opened_at_offset > 0").fetchone() == (0,)
        assert db.execute("SELECT count(*) FROM turns WHERE admitted_at <> %s", (ADMITTED_AT,)).fetchone() == (0,)
        valid = "SELECT bool_and(indisvalid) AND count(*) = 2 FROM pg_index WHERE indexrelid::regclass::text = ANY (%s)"
        assert db.execute(valid, (["ix_turns_admitted", "ix_turns_pending"],)).fetchone() == (True,)
        assert db.execute("SELECT convalidated FROM pg_constraint WHERE conname = 'ck_turns_admission'").fetchone() == (True,)
        assert db.execute("SELECT to_regclass('ix_turns_granted'), to_regclass('ix_turns_unrung')").fetchone() == (None, None)
        with pytest.raises(psycopg.errors.CheckViolation):
            db.execute("UPDATE turns SET admission = 'granted'")
    assert migrate.current(url) == migrate.head()


async def test_open_and_settled_turns_get_new_admission_values(empty_database_url: str):
    await old_turns(empty_database_url, settled=11_000)  # more than two batches

    migrate.upgrade(empty_database_url)

    assert_renamed(empty_database_url)


async def test_renaming_continues_after_it_was_stopped_between_its_parts(empty_database_url: str):
    await old_turns(empty_database_url, settled=6000)
    with psycopg.connect(empty_database_url, autocommit=True) as db:
        # The first part was stopped: one index is there and not valid.
        db.execute("CREATE INDEX ix_turns_admitted ON turns (workspace_id) WHERE place = 'admitted' AND status IN ('queued', 'running')")
        db.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_turns_admitted'::regclass")
        # The third part is stopped in its second batch, after the renames are committed.
        db.execute("CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'stopped'; END $$")
        db.execute("CREATE TRIGGER stop BEFORE UPDATE ON turns FOR EACH ROW WHEN (NEW.opened_at_offset = 6000) EXECUTE FUNCTION stop()")
        with pytest.raises(DBAPIError, match="stopped"):
            migrate.upgrade(empty_database_url)
        done = "SELECT admission, count(*) FROM turns WHERE opened_at_offset > 0 GROUP BY 1 ORDER BY 1"
        assert [name for name, _ in db.execute(done)] == ["admitted", "granted"]
        db.execute("DROP FUNCTION stop CASCADE")
    assert migrate.current(empty_database_url) == "0016"

    migrate.upgrade(empty_database_url)

    assert_renamed(empty_database_url)


def test_migration_gives_up_at_lock_timeout(empty_database_url: str):
    """It fails after its lock_timeout instead of making every turn wait behind it, and changes nothing."""
    migrate.upgrade(empty_database_url, "base")
    with psycopg.connect(empty_database_url) as other:
        other.execute("CREATE TABLE turns ()")  # not committed, so that creating a table of this name waits
        with pytest.raises(OperationalError, match="lock timeout"):
            migrate.upgrade(empty_database_url)
        other.rollback()
    with psycopg.connect(empty_database_url) as db:
        assert db.execute("SELECT to_regclass('users')").fetchone() == (None,)
    migrate.upgrade(empty_database_url)
    assert migrate.current(empty_database_url) == migrate.head()


@pytest.mark.parametrize(
    ("revision", "message"),
    [
        ("0001", "This database is at revision 0001, from before 0.1.0, and cannot be upgraded: create a new one."),
        ("0015", "This database is at revision 0015, from before 0.1.0, and cannot be upgraded: create a new one."),
        ("9999", "This database is at revision 9999, which this version of Turnline does not know: run the version that made it."),
    ],
)
def test_unknown_revision_is_refused(empty_database_url: str, revision: str, message: str):
    migrate.upgrade(empty_database_url)
    with psycopg.connect(empty_database_url) as db:
        db.execute("UPDATE alembic_version SET version_num = %s", (revision,))
    with pytest.raises(CommandError) as refused:
        migrate.upgrade(empty_database_url)
    assert str(refused.value) == message
    assert migrate.current(empty_database_url) == revision


@pytest.mark.parametrize("to", ["base", "-1"])
def test_downgrade_is_refused_and_changes_nothing(database_url: str, to: str):
    downgrade = subprocess.run(
        [sys.executable, "-m", "alembic", "downgrade", to],
        cwd=migrate.ROOT,
        env=os.environ | {"TURNLINE_OWNER_DATABASE_URL": database_url},
        capture_output=True,
        text=True,
    )
    assert downgrade.returncode != 0
    assert "Traceback" not in downgrade.stderr
    assert "Turnline does not support downgrades: restore a backup from before the upgrade." in downgrade.stderr + downgrade.stdout
    assert migrate.current(database_url) == migrate.head()


def test_every_migration_refuses_downgrade():
    for script in ScriptDirectory(str(migrate.ROOT / "migrations")).walk_revisions():
        with pytest.raises(CommandError, match="does not support downgrades"):
            script.module.downgrade()
