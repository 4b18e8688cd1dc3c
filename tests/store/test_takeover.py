"""A takeover wins at any moment."""

from __future__ import annotations

import pytest

from store.database import Database
from tests.support.takeover_schedules import run_schedules


@pytest.mark.parametrize("seed", [1, 2])
async def test_no_agent_reply_follows_a_takeover(database: Database, database_url: str, seed: int):
    """In hundreds of sessions a customer, an operator and workers act between each other's commits, at random moments.

    The invariants at the end say that every message was answered or accounted for, once.
    """
    outcome = await run_schedules(database, database_url, 500, seed)

    assert outcome.late == []
    assert outcome.violations == {}
    assert outcome.interrupted > 100, "the takeovers came too late to prove anything"
    assert outcome.replies > 100
