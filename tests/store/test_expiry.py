"""Sessions that are abandoned and reopened; approvals that expire although no turn runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import psycopg
import pytest

from engine.enums import ApprovalStatus
from engine.errors import Conflict
from store.conversations import expiry, intake, session_control, sessions, turns
from store.conversations import redrive as store_redrive
from store.database import Database
from store.operations import audit
from tests.support.db import rows
from tests.support.engine_runs import REFUND, claimed, run_turn, tool_call
from tests.support.factories import Tenant, tenant
from tests.support.fakes import Script, calls
from tests.support.past_sessions import filled

HOUR = 3600.0


async def run(maintenance: Database) -> int:
    return sum([await expiry.abandon(maintenance, found, HOUR) async for _, found in expiry.idle(maintenance, HOUR)])


async def status(database: Database, made: Tenant) -> str:
    async with database.transaction(made.workspace_id) as db:
        return str((await sessions.get(db, made.session_id))["status"])


@pytest.fixture
async def quiet(database: Database, database_url: str) -> Tenant:
    """A session whose last turn was answered two hours ago."""
    made = await tenant(database)
    filled(database_url, made, days_ago=2 / 24, status="active")
    return made


async def test_idle_session_is_abandoned_and_logged(database: Database, maintenance: Database, quiet: Tenant):
    assert await run(maintenance) >= 1
    assert await run(maintenance) == 0

    ended = (
        "SELECT status, ended_at = (SELECT max(settled_at) FROM turns) AND last_activity_at = ended_at AS then, next_offset FROM sessions"
    )
    ((state, ended_with, offset),) = await rows(database, quiet, ended)
    (event,) = await rows(database, quiet, "SELECT \"offset\", source, content FROM events WHERE kind = 'status_update'")
    assert (state, ended_with, offset) == ("abandoned", True, 9)
    assert tuple(event) == (8, "system", {"status": "abandoned"})
    assert (await audit.run(maintenance)).findings == {}


@pytest.mark.parametrize(
    "why",
    [
        "UPDATE sessions SET last_activity_at = now() - interval '59 minutes' WHERE id = %(s)s",
        "UPDATE sessions SET quarantined_at = now() WHERE id = %(s)s",
        "UPDATE sessions SET deleting_at = now(), status = 'completed' WHERE id = %(s)s",
        "UPDATE sessions SET lease_until = now() + interval '1 minute', lease_owner = 'x' WHERE id = %(s)s",
        "INSERT INTO turns (workspace_id, session_id, opened_at_offset) VALUES (%(w)s, %(s)s, 8)",
    ],
    ids=["young", "quarantined", "being deleted", "leased", "open turn"],
)
async def test_session_with_open_work_is_not_abandoned(maintenance: Database, quiet: Tenant, database_url: str, why: str):
    ids = {"w": quiet.workspace_id, "s": quiet.session_id}
    with psycopg.connect(database_url) as db:
        db.execute(why, ids)

    await run(maintenance)
    assert await expiry.abandon(maintenance, [quiet.session_id], HOUR) == 0, "nor if it got open work after the query"

    with psycopg.connect(database_url) as db:
        assert db.execute("SELECT status <> 'abandoned' FROM sessions WHERE id = %(s)s", ids).fetchone() == (True,)
        db.execute("DELETE FROM turns WHERE status = 'queued'")


async def test_message_reopens_abandoned_session(database: Database, maintenance: Database, quiet: Tenant):
    await run(maintenance)

    accepted = await intake.accept(database, quiet.workspace_id, quiet.session_id, "Are you there?", message_key="k")
    again = await intake.accept(database, quiet.workspace_id, quiet.session_id, "Are you there?", message_key="k")

    assert again.repeated
    assert accepted.turn_id is not None
    assert accepted.turn_id == accepted.to_dispatch
    log = await rows(database, quiet, 'SELECT kind, content->>\'status\' FROM events WHERE "offset" >= 8 ORDER BY "offset"')
    assert [tuple(row) for row in log] == [("status_update", "abandoned"), ("status_update", "reopened"), ("customer_message", None)]
    assert [tuple(row) for row in await rows(database, quiet, "SELECT status, ended_at FROM sessions")] == [("active", None)]
    assert await run(maintenance) == 0
    await session_control.cancel_session(database, quiet.workspace_id, quiet.session_id, by="ops")


@pytest.mark.parametrize("who", ["a person", "an operator"])
async def test_person_can_reply_in_abandoned_session(database: Database, maintenance: Database, quiet: Tenant, database_url: str, who: str):
    if who == "an operator":
        with psycopg.connect(database_url) as db:
            db.execute("UPDATE turns SET status = 'dead' WHERE opened_at_offset = 4 AND session_id = %s", [quiet.session_id])
    await run(maintenance)

    if who == "a person":
        await session_control.reply_as_person(database, quiet.workspace_id, quiet.session_id, "human_agent", "Hello again.")
    else:
        ((turn,),) = await rows(database, quiet, "SELECT id FROM turns WHERE opened_at_offset = 4")
        await store_redrive.redrive(database, quiet.workspace_id, turn, from_scratch=False, by="Olga", in_flight_limit=10)

    assert await status(database, quiet) == "active"
    await session_control.cancel_session(database, quiet.workspace_id, quiet.session_id, by="ops")


async def test_completed_session_is_not_abandoned(database: Database, maintenance: Database, quiet: Tenant):
    await run(maintenance)
    async with database.transaction(quiet.workspace_id) as db:
        await sessions.end(db, quiet.session_id)
    assert await status(database, quiet) == "abandoned"

    other = await tenant(database)
    async with database.transaction(other.workspace_id) as db:
        await sessions.end(db, other.session_id)
    with pytest.raises(Conflict, match="has ended"):
        await intake.accept(database, other.workspace_id, other.session_id, "Hello?")


@pytest.fixture
async def awaiting_approval(database: Database) -> AsyncIterator[tuple[Tenant, UUID]]:
    """A session whose turn waits for an approval that is overdue."""
    made = await tenant(database, tools=(REFUND,))
    turn_id = (await intake.accept(database, made.workspace_id, made.session_id, "Pay me back.")).turn_id
    assert turn_id is not None
    await run_turn(database, turn_id, Script(calls(tool_call(1))), approval_s=0.01)
    yield made, turn_id
    await session_control.cancel_session(database, made.workspace_id, made.session_id, by="ops")


@pytest.mark.parametrize("state", ["auto", "paused", "quarantined", "leased"])
async def test_overdue_approval_expires(
    database: Database, maintenance: Database, database_url: str, awaiting_approval: tuple[Tenant, UUID], state: str
):
    made, turn_id = awaiting_approval
    if state == "paused":
        await session_control.set_mode(database, made.workspace_id, made.session_id, "paused", by="ops")
    with psycopg.connect(database_url) as db:
        if state == "quarantined":
            db.execute("UPDATE sessions SET quarantined_at = now() WHERE id = %s", [made.session_id])
        if state == "leased":
            db.execute("UPDATE sessions SET lease_until = now() + interval '1 minute' WHERE id = %s", [made.session_id])

    expired = sum([await expiry.expire(maintenance, page) async for page in expiry.with_late_approvals(maintenance, grace_s=0)])

    ((found, decided),) = await rows(database, made, "SELECT status, decided_at IS NOT NULL FROM approvals")
    logged: list[Any] = list(await rows(database, made, "SELECT content FROM events WHERE content->>'status' = 'approval_decided'"))
    if state == "leased":
        assert (expired, found, logged) == (0, "pending", [])
        return
    assert (expired, found, decided, len(logged)) == (1, "expired", True, 1)
    ((later,),) = await rows(database, made, "SELECT last_activity_at > (SELECT max(requested_at) FROM approvals) FROM sessions")
    assert not later or state == "paused", "the passage of time is not activity"
    assert (logged[0][0]["decision"], logged[0][0]["tool_name"]) == ("expired", "refund")
    assert (await audit.run(maintenance)).findings == {}
    if state == "auto":  # and the resumed turn sees that it has expired
        claim = await claimed(database, turn_id)
        assert isinstance(claim, turns.Claim)
        (pending,) = claim.resume_point.pending.values()
        assert pending.approval is not None
        assert pending.approval.decision is ApprovalStatus.EXPIRED
