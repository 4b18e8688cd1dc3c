"""Renewing the leases of a process, on a real Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from engine.errors import LeaseLost
from store.conversations import intake
from store.database import Database
from tests.support.claims import claimed
from tests.support.db import rows
from tests.support.factories import tenant
from worker.leases import Leases


@pytest.fixture
async def leases(database: Database) -> AsyncIterator[Leases]:
    made = Leases(database, lease_s=1.0, renew_every_s=0.1)
    made.start()
    yield made
    await made.stop()


async def test_lease_is_renewed_beyond_its_first_duration(database: Database, leases: Leases):
    made = await tenant(database)
    accepted = await intake.accept(database, made.workspace_id, made.session_id, "one")
    claim = await claimed(database, accepted.turn_id, lease_s=1.0)

    async with leases.keep(claim.session_id, claim.fence):
        await asyncio.sleep(1.5)
        ((live,),) = await rows(database, made, "SELECT lease_until > now() FROM sessions")

    assert live
    assert len(leases) == 0


async def test_work_is_cancelled_when_its_lease_is_taken_over(database: Database, leases: Leases):
    made = await tenant(database)
    accepted = await intake.accept(database, made.workspace_id, made.session_id, "one")
    claim = await claimed(database, accepted.turn_id)
    await rows(database, made, "UPDATE sessions SET lease_fence = lease_fence + 1 RETURNING 1")

    with pytest.raises(LeaseLost):
        async with leases.keep(claim.session_id, claim.fence):
            await asyncio.sleep(30)

    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0, "the caller continues"


async def test_cancellation_from_outside_is_not_turned_into_lease_lost(database: Database, leases: Leases):
    made = await tenant(database)
    accepted = await intake.accept(database, made.workspace_id, made.session_id, "one")
    claim = await claimed(database, accepted.turn_id)

    async def work() -> None:
        async with leases.keep(claim.session_id, claim.fence):
            await asyncio.sleep(30)

    task = asyncio.create_task(work())
    await asyncio.sleep(0.05)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_leases_are_lost_when_the_database_is_unreachable_for_too_long(leases: Leases):
    unreachable = Leases(Database("postgresql://nobody@127.0.0.1:1/none", pool_size=1), lease_s=0.5, renew_every_s=0.1)
    await unreachable._database.open()
    unreachable.start()
    try:
        with pytest.raises(LeaseLost):
            async with unreachable.keep(uuid4(), 1):
                await asyncio.sleep(30)
    finally:
        await unreachable.stop()
        await unreachable._database.close()


async def test_second_claim_of_a_session_in_one_process_ends_the_first(leases: Leases):
    session = uuid4()
    first_has_it = asyncio.Event()

    async def first() -> None:
        async with leases.keep(session, 1):
            first_has_it.set()
            await asyncio.sleep(30)

    task = asyncio.create_task(first())
    await first_has_it.wait()

    async with leases.keep(session, 2):
        with pytest.raises(LeaseLost):
            await task
