"""`store/sql` holds exactly the functions of a migrated database, with the same definitions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from store import sql

# A function with its settings, owner and grants. Aggregates have no pg_get_functiondef, so their definition is assembled here.
FUNCTIONS = """
    SELECT p.proname AS name, p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')' AS signature,
        CASE WHEN p.prokind <> 'a' THEN pg_get_functiondef(p.oid)
            ELSE format('aggregate of %s: %s, %s, %s, %s, %s, %s', pg_get_function_arguments(p.oid), a.aggtransfn,
                a.aggtranstype::regtype, a.aggfinalfn, a.aggcombinefn, a.agginitval, p.proparallel) END AS definition,
        p.prosecdef AS security_definer, p.proconfig AS settings, p.proowner::regrole::text AS owner,
        ARRAY(SELECT g::text FROM unnest(p.proacl) g ORDER BY 1) AS grants
    FROM pg_proc p LEFT JOIN pg_aggregate a ON a.aggfnoid = p.oid
    WHERE p.pronamespace = 'public'::regnamespace
"""
DROP_ALL = """
    DO $$ DECLARE f record; BEGIN
        FOR f IN SELECT oid::regprocedure AS name FROM pg_proc WHERE pronamespace = 'public'::regnamespace ORDER BY prokind LOOP
            EXECUTE format('DROP ROUTINE IF EXISTS %s CASCADE', f.name);
        END LOOP;
    END $$
"""


def functions(db: psycopg.Connection[Any]) -> dict[str, dict[str, Any]]:
    """Return the definitions of the functions of schema public, by name."""
    with db.cursor(row_factory=dict_row) as cursor:
        found = {row["name"]: row for row in cursor.execute(FUNCTIONS)}
        assert len(found) == cursor.rowcount, "two functions have one name: store/sql has one file for each name"
        return found


def run(db: psycopg.Connection[Any], name: str) -> None:
    """Run a function's file as a migration does."""
    db.execute(sql.text(name).encode())


@pytest.fixture(scope="module")
def migrated(database_url: str) -> dict[str, dict[str, Any]]:
    """The functions that the migrations made."""
    with psycopg.connect(database_url) as db:
        return functions(db)


@pytest.fixture
def without_functions(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection as turnline_owner to a migrated database whose functions are dropped until the transaction ends."""
    with psycopg.connect(database_url) as db:
        db.execute(DROP_ALL)
        db.execute("SET LOCAL ROLE turnline_owner")
        db.execute("SET LOCAL check_function_bodies = off")
        yield db
        db.rollback()


def test_every_function_has_a_file_and_every_file_a_function(migrated):
    in_files, in_database = set(sql.names()), set(migrated)
    assert not in_database - in_files, f"functions without a file in store/sql: {sorted(in_database - in_files)}"
    assert not in_files - in_database, f"files in store/sql whose function no migration makes: {sorted(in_files - in_database)}"


def test_file_makes_only_the_function_of_its_name(without_functions):
    before: set[str] = set()
    for name in sql.names():
        run(without_functions, name)
        made = set(functions(without_functions))
        assert made - before == {name}, f"store/sql/{name}.sql makes {sorted(made - before)}"
        before = made


def test_files_equal_migrated_functions(migrated, without_functions):
    for name in sql.names():
        run(without_functions, name)
    found = functions(without_functions)
    for name in sorted(found.keys() & migrated.keys()):
        assert found[name] == migrated[name], (
            f"store/sql/{name}.sql is not what the migrations make of {name}: add a migration with its text"
        )


def test_file_replaces_existing_function(migrated, database_url):
    with psycopg.connect(database_url) as db:
        db.execute("SET LOCAL ROLE turnline_owner")
        for name in sql.names():
            run(db, name)
        assert functions(db) == migrated
        db.rollback()


@pytest.mark.parametrize("name", sql.names())
def test_file_header_states_purpose_locks_and_callers(name):
    header = sql.text(name).split("\n\n", 1)[0].splitlines()
    assert all(line.startswith("-- ") for line in header)
    labels = [line.split(":")[0] for line in header if line.startswith(("-- Locks: ", "-- Callers: "))]
    assert labels == ["-- Locks", "-- Callers"]
    assert not header[0].startswith("-- Locks"), "the purpose comes first"
