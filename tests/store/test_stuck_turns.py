"""Open turns that no worker has claimed: the same list for the watchdog, which needs the runnable ones, and for operators."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from store.conversations import intake
from store.database import Database
from store.operations import stuck_turns
from tests.support.factories import tenant

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ROW: dict[str, Any] = {
    **{"session_id": uuid4(), "status": "queued", "mode": "auto", "admission": "admitted", "error_class": None, "early": False},
    **{"cancel_requested_at": None, "quarantined_at": None, "not_before": None, "lease_until": None},
    **{"dispatched_at": AT, "dispatch_count": 3},
}


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({}, "no worker took it; dispatched 3 times, last at 01-02 03:04:05Z"),
        ({"dispatch_count": 1}, "no worker took it; dispatched, last at 01-02 03:04:05Z"),
        ({"dispatched_at": None}, "it was never dispatched: is the maintenance worker running?"),
        ({"mode": "paused"}, "its session is paused"),
    ],
)
def test_reason_names_dispatches(changed: dict[str, Any], why: str):
    assert stuck_turns.why(ROW | changed) == why


async def test_only_runnable_turns_are_listed_on_request(database: Database, maintenance: Database, database_url: str):
    made = await tenant(database, sessions=3)
    for session_id in made.session_ids:
        await intake.accept(database, made.workspace_id, session_id, "Hello")
    with psycopg.connect(database_url, autocommit=True) as db:
        db.execute("UPDATE turns SET opened_at = now() - interval '1 minute'")
        db.execute("UPDATE sessions SET mode = 'paused' WHERE id = %s", (made.session_ids[1],))
        db.execute("UPDATE turns SET not_before = now() + interval '1 minute' WHERE session_id = %s", (made.session_ids[2],))

    everything = await stuck_turns.open_turns(maintenance, 10, 30.0)
    runnable = await stuck_turns.open_turns(maintenance, 10, 30.0, runnable=True)

    assert {row["session_id"] for row in everything} == set(made.session_ids)
    assert [row["session_id"] for row in runnable] == made.session_ids[:1]
    assert await stuck_turns.open_turns(maintenance, 10, 90.0) == []
