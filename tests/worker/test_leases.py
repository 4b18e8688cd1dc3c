"""The heartbeat of a process, on a real Postgres."""

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
    made = Leases(database, lease_s=1.0, every_s=0.1)
    made.start()
    yield made
    await made.stop()


async def test_a_held_lease_lives_longer_than_one_claim_gives_it(database: Database, leases: Leases):
    made = await tenant(database)
    accepted = await intake.accept(database, made.workspace_id, made.session_id, "one")
    held = await claimed(database, accepted.turn_id, lease_s=1.0)

    async with leases.hold(held.session_id, held.fence):
        await asyncio.sleep(1.5)
        ((live,),) = await rows(database, made, "SELECT lease_until > now() FROM sessions")

    assert live
    assert len(leases) == 0


async def test_work_under_a_lease_that_was_taken_over_is_cancelled(database: Database, leases: Leases):
    made = await tenant(database)
    accepted = await intake.accept(database, made.workspace_id, made.session_id, "one")
    held = await claimed(database, accepted.turn_id)
    await rows(database, made, "UPDATE sessions SET lease_fence = lease_fence + 1 RETURNING 1")

    with pytest.raises(LeaseLost):
        async with leases.hold(held.session_id, held.fence):
            await asyncio.sleep(30)

    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0, "the caller goes on"


async def test_a_cancellation_from_outside_stays_one(database: Database, leases: Leases):
    made = await tenant(database)

    async def work() -> None:
        async with leases.hold(made.session_id, 0):
            await asyncio.sleep(30)

    task = asyncio.create_task(work())
    await asyncio.sleep(0.05)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_leases_are_given_up_when_the_database_has_been_silent_for_too_long(leases: Leases):
    unreachable = Leases(Database("postgresql://nobody@127.0.0.1:1/none", pool_size=1), lease_s=0.5, every_s=0.1)
    await unreachable._database.open()
    unreachable.start()
    try:
        with pytest.raises(LeaseLost):
            async with unreachable.hold(uuid4(), 1):
                await asyncio.sleep(30)
    finally:
        await unreachable.stop()
        await unreachable._database.close()


async def test_a_session_claimed_again_in_this_process_takes_the_lease_from_its_former_holder(leases: Leases):
    session = uuid4()
    taken = asyncio.Event()

    async def former() -> None:
        async with leases.hold(session, 1):
            taken.set()
            await asyncio.sleep(30)

    task = asyncio.create_task(former())
    await taken.wait()

    async with leases.hold(session, 2):
        with pytest.raises(LeaseLost):
            await task
