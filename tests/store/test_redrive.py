"""Redrive and quarantine on a real Postgres: the state after a redrive, and concurrent redrives and claims."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest

from engine.enums import EventKind, Source
from engine.errors import Conflict
from engine.events import Event
from engine.turn.commit import Finish, TurnCommit
from engine.turn.context import Limits
from store.conversations import intake, turns
from store.conversations import redrive as store_redrive
from store.database import Database
from tests.support.db import rows
from tests.support.factories import Tenant, tenant


async def claim(database: Database, turn_id: UUID, owner: str, lease_s: float = 30.0, attempts: int = 2) -> Any:
    return await turns.claim(
        database, turn_id, owner, lease_s=lease_s, max_attempts=attempts, history_limit=400, limits=Limits(), secrets=lambda *_: {}
    )


async def redrive(database: Database, made: Tenant, turn_id: UUID, *, from_scratch: bool = False) -> store_redrive.Redriven:
    return await store_redrive.redrive(database, made.workspace_id, turn_id, from_scratch=from_scratch, by="me", in_flight_limit=200)


async def opened(database: Database, made: Tenant, text: str = "one") -> UUID:
    accepted = await intake.accept(database, made.workspace_id, made.session_id, text)
    assert accepted.turn_id is not None
    return accepted.turn_id


async def dead(database: Database, made: Tenant, text: str = "one") -> UUID:
    """Make a turn whose every claim ended during its model call."""
    turn_id = await opened(database, made, text)
    while not (isinstance(one := await claim(database, turn_id, f"{turn_id}{text}", 0.01), turns.NotClaimed) and one.why == "dead"):
        await asyncio.sleep(0.02)
    return turn_id


async def test_turn_that_died_in_first_model_call_is_redriven(database: Database):
    """Its ledger has attempts at step 0 and it has no commit; the next attempt must get an unused number."""
    made = await tenant(database)
    turn_id = await dead(database, made)

    again = await redrive(database, made, turn_id)
    claimed = await claim(database, turn_id, "after")

    assert again.to_dispatch == turn_id
    assert (claimed.outstanding.step, claimed.outstanding.attempt) == (0, 2)
    assert await rows(database, made, "SELECT attempt, state FROM model_calls ORDER BY attempt") == [
        (0, "unknown"),
        (1, "unknown"),
        (2, "reserved"),
    ]
    assert await rows(database, made, "SELECT status, attempts, redrives FROM turns") == [("running", 1, 1)]


async def test_only_one_of_two_concurrent_redrives_counts(database: Database):
    made = await tenant(database)
    turn_id = await dead(database, made)

    results = await asyncio.gather(*(redrive(database, made, turn_id) for _ in range(8)), return_exceptions=True)

    assert sorted(type(result).__name__ for result in results) == ["Conflict"] * 7 + ["Redriven"]
    assert await rows(database, made, "SELECT redrives FROM turns") == [(1,)]
    assert await rows(database, made, "SELECT count(*) FROM events WHERE content->>'status' = 'redriven'") == [(1,)]


async def test_redriven_turn_runs_before_later_queued_turns(database: Database):
    made = await tenant(database)
    first = await dead(database, made, "one")
    second = await opened(database, made, "two")

    again = await redrive(database, made, first)

    assert again.to_dispatch == first
    assert (await claim(database, second, "too early")).why == "not_next"
    claimed = await claim(database, first, "first")
    assert [event.content["text"] for event in claimed.resume_point.events if event.kind is EventKind.CUSTOMER_MESSAGE] == ["one"]
    reply = Event(EventKind.AGENT_MESSAGE, Source.AI_AGENT, {"text": "Yes."}, {"read_through": 0})
    await claimed.write(TurnCommit(events=(reply,), outcome=Finish("done")))
    assert claimed.next_turn == second


@pytest.mark.parametrize("status", ["running", "done"])
async def test_turn_is_not_redriven_after_later_turn_ran(database: Database, status: str):
    made = await tenant(database)
    first = await dead(database, made, "one")
    claimed = await claim(database, await opened(database, made, "two"), "later")
    if status == "done":
        reply = Event(EventKind.AGENT_MESSAGE, Source.AI_AGENT, {"text": "Yes."}, {"read_through": 8})
        await claimed.write(TurnCommit(events=(reply,), outcome=Finish("done")))

    with pytest.raises(Conflict, match="later turn"):
        await redrive(database, made, first)


async def test_reply_resets_count_of_dead_turns(database: Database):
    made = await tenant(database)
    await dead(database, made, "one")
    await dead(database, made, "two")
    claimed = await claim(database, await opened(database, made, "three"), "answers")
    reply = Event(EventKind.AGENT_MESSAGE, Source.AI_AGENT, {"text": "Yes."}, {"read_through": 8})
    await claimed.write(TurnCommit(events=(reply,), outcome=Finish("done")))

    await dead(database, made, "four")
    await dead(database, made, "five")

    assert await rows(database, made, "SELECT dead_in_row, quarantined_at FROM sessions") == [(2, None)]
    last = await dead(database, made, "six")
    assert [quarantined for (quarantined,) in await rows(database, made, "SELECT quarantined_at IS NOT NULL FROM sessions")] == [True]
    await redrive(database, made, last)
    assert await rows(database, made, "SELECT dead_in_row, quarantined_at FROM sessions") == [(0, None)]
