"""Each violation in a real database is found with its ids; a sound database, with open work or without, has none."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from uuid_utils.compat import uuid7

from store.database import Database
from store.operations import audit
from store.operations.audit_checks import QUESTIONS
from tests.support.corrupt_rows import LEGITIMATE, SETTLED, SOUND, VIOLATIONS
from tests.support.factories import tenant
from tests.support.invariants import violations


class CorruptDatabase:
    """The test's own database, changed as its superuser."""

    def __init__(self, database_url: str) -> None:
        self.database_url = database_url
        self.ids: dict[str, Any] = {}

    def change(self, statements: str) -> None:
        with psycopg.connect(self.database_url) as db:
            db.execute("SET session_replication_role = replica")  # disables constraints, because a fault may violate them
            for statement in filter(str.strip, statements.split(";")):
                db.execute(statement, self.ids)

    def names(self, finding: audit.Finding) -> list[str | None]:
        names = {str(value): key for key, value in self.ids.items() if key.startswith("t")}
        dead = self.ids["dead"]
        return sorted(
            (what if what is None else names.get(what, f"dead:{what}" if session == dead else what) for session, what in finding.ids),
            key=str,
        )


@pytest.fixture
async def corrupt(database_url: str) -> CorruptDatabase:
    """A database with two sound sessions only."""
    found = CorruptDatabase(database_url)
    tables = "audits, model_calls, tool_calls, events, turns, sessions, agent_tools, tool_integrations, tools, agents, workspaces"
    with psycopg.connect(database_url) as db:
        db.execute(f"TRUNCATE {tables} CASCADE")
    database = Database(database_url, pool_size=2)
    await database.open()
    made = await tenant(database, sessions=2, tools=({"name": "refund", "effect": "unsafe"},))
    await database.close()
    found.ids = {"w": made.workspace_id, "s": made.session_ids[0], "dead": made.session_ids[1]} | {
        name: uuid7() for name in ("t1", "t2", "t3", "t4")
    }
    found.change(SOUND)
    return found


@pytest.mark.parametrize("name", VIOLATIONS)
async def test_a_violation_is_found(corrupt: CorruptDatabase, maintenance: Database, name: str):
    statements, expected = VIOLATIONS[name]
    corrupt.change(statements)

    report = await audit.run(maintenance)

    assert {name: corrupt.names(finding) for name, finding in report.findings.items()} == expected
    assert report.violations == sum(len(ids) for ids in expected.values())
    (kept,) = await audit.latest(maintenance)
    assert {name: found["count"] for name, found in kept["violations"].items()} == {name: len(ids) for name, ids in expected.items()}


def test_every_question_has_a_violation_case():
    """Except the one that needs a broken index, below."""
    found = {question for _, expected in VIOLATIONS.values() for question in expected}
    assert {question.name for question in QUESTIONS} - found == {"idempotency keys used twice"}


@pytest.mark.parametrize("name", ["nothing", *LEGITIMATE])
async def test_a_sound_database_has_no_violation(corrupt: CorruptDatabase, maintenance: Database, name: str):
    corrupt.change(LEGITIMATE.get(name, ""))

    report = await audit.run(maintenance)

    assert report.findings == {}
    assert report.complete
    assert report.checked["sessions"] == 2
    assert bool(violations(corrupt.database_url)) == (name not in ("nothing", *SETTLED))


async def test_two_calls_under_one_key(corrupt: CorruptDatabase, maintenance: Database):
    """This violation needs a broken index."""
    index = "uq_tool_calls_workspace_id_idempotency_key"
    corrupt.change(f"DROP INDEX {index}; CREATE TEMP TABLE c AS SELECT * FROM tool_calls; UPDATE c SET tool_call_id = 'c2';"
                   " INSERT INTO tool_calls SELECT * FROM c; DROP TABLE c")  # fmt: skip
    report = await audit.run(maintenance)
    corrupt.change(f"DELETE FROM tool_calls; CREATE UNIQUE INDEX {index} ON tool_calls (workspace_id, idempotency_key)")

    assert corrupt.names(report.findings["idempotency keys used twice"]) == ["c1", "c2"]
