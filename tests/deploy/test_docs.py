"""The runbook has a row for each violation that the audit can find, and its repairs work."""

from __future__ import annotations

import re

import psycopg
import pytest

from store.conversations import intake
from store.database import Database
from store.operations.audit_checks import QUESTIONS
from tests.support.claims import ANSWERED, claimed
from tests.support.factories import tenant
from tests.support.invariants import violations
from tests.support.servers import ROOT

RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()


@pytest.mark.parametrize("violation", sorted(question.name for question in QUESTIONS))
def test_runbook_has_a_row_for_every_violation(violation: str):
    assert f"\n| {violation} |" in RUNBOOK


async def test_runbook_repairs_counters(database_url: str):
    database = Database(database_url, pool_size=2)
    await database.open()
    made = await tenant(database)
    accepted = await intake.accept(database, made.workspace_id, made.session_id, "Is order 41 paid?")
    await (await claimed(database, accepted.turn_id)).write(ANSWERED)
    await database.close()
    (statement,) = re.findall(r"```sql\n(UPDATE sessions.*?)```", RUNBOOK, re.DOTALL)
    with psycopg.connect(database_url, autocommit=True) as db:
        db.execute("UPDATE sessions SET event_count = 7, message_count = 0, cost_usd = 9, tokens_used = 1, unknown_calls = 3")
        assert violations(database_url)

        db.execute(statement.replace("THE SESSION", str(made.session_id)))

    assert violations(database_url) == {}
