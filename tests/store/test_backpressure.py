"""Counts of open turns, the time that turns wait for a worker, and the prediction that a message opens a turn."""

from __future__ import annotations

from contextlib import suppress
from uuid import UUID

import psycopg
import pytest
from uuid_utils.compat import uuid7

from engine.enums import Strategy
from engine.errors import Conflict
from store.conversations import backpressure, intake
from store.conversations.backpressure import Limits
from store.database import Database
from tests.support.factories import Tenant, tenant

LIMITS = Limits(workspace=5, total=4, behind_s=60)


def change(database_url: str, statement: str, *parameters: object) -> None:
    """Change rows as the server's superuser, without the functions through which the product changes them."""
    with psycopg.connect(database_url, autocommit=True) as db:
        db.execute("SET session_replication_role = replica")  # so that no trigger sets the time of this
        assert db.execute(statement, parameters).rowcount > 0


@pytest.fixture
def nothing_open(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as db:
        db.execute("UPDATE turns SET status = 'done'")


async def due_since(database: Database, database_url: str, seconds: float, made: Tenant | None = None) -> tuple[Tenant, UUID]:
    """Make a turn that was admitted so many seconds ago and that no worker has claimed."""
    made = made or await tenant(database)
    accepted = await intake.accept(database, made.workspace_id, made.session_id, "Hello")
    assert accepted.to_dispatch == accepted.turn_id is not None
    change(database_url, "UPDATE turns SET admitted_at = now() - make_interval(secs => %s) WHERE id = %s", seconds, accepted.turn_id)
    return made, accepted.turn_id


async def test_open_turns_are_counted_by_workspace_up_to_the_limit(database: Database, nothing_open: None):
    few, many = await tenant(database, sessions=2), await tenant(database, sessions=8)
    for made in (few, many):
        for session_id in made.session_ids:
            await intake.accept(database, made.workspace_id, session_id, "Hello")
    strangers = uuid7()

    found = await backpressure.read(database, LIMITS, [many.workspace_id, strangers, few.workspace_id])

    assert found.by_workspace == {few.workspace_id: 2, many.workspace_id: 5, strangers: 0}
    assert found.total == 4
    assert found.behind_s < 30
    nothing = await backpressure.read(database, Limits(0, 0, 0), [many.workspace_id])
    assert nothing == backpressure.Reading({}, 0, 0.0)
    assert (await backpressure.read(database, LIMITS, [])).by_workspace == {}


async def test_unclaimed_turn_counts_as_behind(database: Database, database_url: str, nothing_open: None):
    await due_since(database, database_url, 75)
    await due_since(database, database_url, 20)
    assert 75 <= (await backpressure.read(database, LIMITS, [])).behind_s < 90


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE turns SET status = 'running', claimed_at = now() WHERE id = %s",
        "UPDATE turns SET status = 'waiting', admission = 'pending' WHERE id = %s",
        "UPDATE turns SET admission = 'pending' WHERE id = %s",
        "UPDATE turns SET not_before = now() + interval '1 hour' WHERE id = %s",
        "UPDATE sessions SET mode = 'paused' WHERE id = (SELECT session_id FROM turns WHERE id = %s)",
        "UPDATE sessions SET mode = 'manual' WHERE id = (SELECT session_id FROM turns WHERE id = %s)",
        "UPDATE sessions SET quarantined_at = now() WHERE id = (SELECT session_id FROM turns WHERE id = %s)",
        "UPDATE sessions SET lease_owner = 'w', lease_until = now() + interval '1 minute' WHERE id ="
        " (SELECT session_id FROM turns WHERE id = %s)",
        "UPDATE turns SET admitted_at = now() - interval '11 minutes' WHERE id = %s",
    ],
    ids=[
        "running",
        "for-approval",
        "at-in-flight-limit",
        "parked",
        "paused",
        "manual",
        "quarantined",
        "leased",
        "admitted-long-ago",
    ],
)
async def test_turn_that_cannot_run_does_not_count_as_behind(database: Database, database_url: str, nothing_open: None, statement: str):
    _, turn_id = await due_since(database, database_url, 75)
    change(database_url, statement, turn_id)
    assert (await backpressure.read(database, LIMITS, [])).behind_s == 0


async def test_unclaimable_turn_does_not_count_while_later_ones_are_claimed(database: Database, database_url: str, nothing_open: None):
    await due_since(database, database_url, 75)
    _, later = await due_since(database, database_url, 40)
    change(database_url, "UPDATE turns SET status = 'done', claimed_at = admitted_at + interval '1 second' WHERE id = %s", later)
    assert (await backpressure.read(database, LIMITS, [])).behind_s == 0


async def test_every_admission_sets_admitted_at(database: Database, database_url: str, nothing_open: None):
    made = await tenant(database)
    first = await intake.accept(database, made.workspace_id, made.session_id, "one", strategy="enqueue")
    second = await intake.accept(database, made.workspace_id, made.session_id, "two", strategy="enqueue")
    with psycopg.connect(database_url, autocommit=True) as db:
        query = "SELECT id, admission, admitted_at IS NULL FROM turns WHERE session_id = %s ORDER BY opened_at_offset"
        assert db.execute(query, (made.session_id,)).fetchall() == [
            (first.turn_id, "admitted", False),
            (second.turn_id, "blocked", True),
        ]
        db.execute("UPDATE turns SET admission = 'admitted' WHERE id = %s", (second.turn_id,))
        noted = db.execute("SELECT admitted_at FROM turns WHERE id = %s", (second.turn_id,)).fetchone()
        db.execute("UPDATE turns SET admission = 'admitted' WHERE id = %s", (second.turn_id,))
        assert db.execute("SELECT admitted_at FROM turns WHERE id = %s", (second.turn_id,)).fetchone() == noted
    assert noted is not None
    assert noted[0] is not None


async def count_open(database: Database, made: Tenant) -> int:
    return (await backpressure.read(database, Limits(100, 0, 0), [made.workspace_id])).by_workspace[made.workspace_id]


async def would_open(database: Database, made: Tenant, message_key: str | None = None, strategy: str | None = None) -> bool:
    return await backpressure.opens_one_more(database, made.workspace_id, made.session_id, message_key=message_key, strategy=strategy)


async def test_message_to_abandoned_session_opens_a_turn(database: Database, database_url: str):
    made = await tenant(database)
    change(database_url, "UPDATE sessions SET status = 'abandoned', ended_at = now() WHERE id = %s", made.session_id)

    assert await would_open(database, made) is True

    accepted = await intake.accept(database, made.workspace_id, made.session_id, "Hello")
    assert accepted.turn_id is not None
    assert await count_open(database, made) == 1


@pytest.mark.parametrize("strategy", ["interrupt", "rollback"])
async def test_forbidden_interruption_behind_an_enqueued_turn_opens_a_turn(database: Database, strategy: str):
    """Without allow_interruption the message coalesces, and nothing coalesces with an enqueued turn."""
    made = await tenant(database, allow_interruption=False)
    await intake.accept(database, made.workspace_id, made.session_id, "Hello", strategy="enqueue")

    assert await would_open(database, made, strategy=strategy) is True

    await intake.accept(database, made.workspace_id, made.session_id, "Hello", strategy=strategy)
    assert await count_open(database, made) == 2


async def test_repeated_message_opens_no_turn(database: Database):
    made = await tenant(database)
    await intake.accept(database, made.workspace_id, made.session_id, "Hello", strategy="enqueue", message_key="k0")

    assert await would_open(database, made, "k0", "enqueue") is False
    assert await would_open(database, made, "new", "enqueue") is True


OPEN_BEFORE = {
    "none": (),
    "coalesced": ("coalesce",),
    "enqueued": ("enqueue",),
    "two enqueued": ("enqueue", "enqueue"),
}
STATES = {
    "as it is": None,
    "abandoned": "UPDATE sessions SET status = 'abandoned', ended_at = now() WHERE id = %s",
    "completed": "UPDATE sessions SET status = 'completed', ended_at = now() WHERE id = %s",
    "manual": "UPDATE sessions SET mode = 'manual' WHERE id = %s",
    "paused": "UPDATE sessions SET mode = 'paused' WHERE id = %s",
    "agent inactive": "UPDATE agents SET status = 'inactive' WHERE id = (SELECT agent_id FROM sessions WHERE id = %s)",
    "agent deleted": "UPDATE agents SET deleted_at = now() WHERE id = (SELECT agent_id FROM sessions WHERE id = %s)",
    "turn running": "UPDATE turns SET status = 'running', attempts = 1, writes = 1 WHERE id = (SELECT id FROM turns WHERE session_id = %s"
    " ORDER BY opened_at_offset LIMIT 1)",
    "turns stopping": "UPDATE turns SET cancel_requested_at = now(), cancel_reason = 'Cancelled', attempts = 1 WHERE session_id = %s",
}


@pytest.mark.parametrize("interruptible", [True, False], ids=["interruptible", "not-interruptible"])
@pytest.mark.parametrize("state", STATES)
async def test_predicate_agrees_with_accept_message(database: Database, database_url: str, state: str, interruptible: bool):
    """For every strategy and state: the message is predicted to open a turn exactly if accepting it does."""
    wrong = []
    for before in OPEN_BEFORE.values():
        for strategy in (None, *Strategy):
            made = await tenant(database, allow_interruption=interruptible)
            for one in before:
                await intake.accept(database, made.workspace_id, made.session_id, "Hello", strategy=one)
            statement = STATES[state]
            if statement is not None and ("turns" not in statement or before):
                change(database_url, statement, made.session_id)
            foretold = await would_open(database, made, strategy=strategy)
            open_before = await count_open(database, made)
            with suppress(Conflict):
                await intake.accept(database, made.workspace_id, made.session_id, "Hello", strategy=strategy)
            if foretold is not (await count_open(database, made) > open_before):
                wrong.append((before, strategy, foretold))
    assert wrong == []
