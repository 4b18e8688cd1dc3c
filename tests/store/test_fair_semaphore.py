"""The fair semaphore: one tenant's many requests do not delay another's, and every waiter gets its slot."""

from __future__ import annotations

import asyncio
import random
from uuid import UUID

import pytest
from psycopg_pool import PoolTimeout
from uuid_utils.compat import uuid7

from store.database import Database
from store.fair_semaphore import FairSemaphore


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Holders:
    """Tasks that take a slot of `semaphore` and keep it until they are released."""

    def __init__(self, semaphore: FairSemaphore) -> None:
        self.semaphore = semaphore
        self.started: list[str] = []
        self._releases: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self, *names: str) -> None:
        """Start tasks with these names, one after the other; the first letter is the tenant."""
        for name in names:
            self._releases[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._occupy(name))
            await asyncio.sleep(0)
        await self.settle()

    async def release(self, *names: str) -> list[str]:
        """Release the slots of these tasks; return the tasks that got a slot, in order."""
        before = len(self.started)
        for name in names:
            self._releases[name].set()
            await self.settle()
        return self.started[before:]

    async def cancel(self, name: str) -> None:
        self.tasks[name].cancel()
        await asyncio.gather(self.tasks[name], return_exceptions=True)

    @staticmethod
    async def settle() -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async def _occupy(self, name: str) -> None:
        async with self.semaphore.taken(name[0], wait_s=60):
            self.started.append(name)
            await self._releases[name].wait()


async def test_single_tenant_may_hold_all_slots():
    holders = Holders(FairSemaphore(8))
    await holders.start(*(f"a{n}" for n in range(10)))
    assert holders.started == [f"a{n}" for n in range(8)]
    assert await holders.release("a3") == ["a8"]


async def test_tenant_is_limited_while_others_are_active():
    clock = Clock()
    holders = Holders(FairSemaphore(8, clock=clock))
    await holders.start("b0", *(f"a{n}" for n in range(5)))
    assert holders.started == ["b0", "a0", "a1"]
    assert await holders.release("b0") == []
    await holders.start("c0", "b1", "b2", "b3")
    assert holders.started[3:] == ["c0", "b1", "b2"], "slots are left for other tenants"

    clock.now += 11
    assert await holders.release("b1") == ["b3", "a2", "a3", "a4"], "no other tenant was active for a while, so all slots may be taken"


async def test_holder_of_fewest_slots_goes_next_in_order():
    holders = Holders(FairSemaphore(4))
    await holders.start("a0", "a1", "a2", "a3", "a4", "a5", "b0", "b1")
    assert holders.started == ["a0", "a1", "a2", "a3"]
    assert await holders.release("a0") == ["b0"]
    assert await holders.release("a1", "a2", "a3") == ["a4"]
    assert await holders.release("a4", "b0") == ["a5", "b1"]


async def test_cancelled_waiter_holds_no_slot():
    holders = Holders(FairSemaphore(1))
    await holders.start("a0", "b0", "b1", "c0")
    await holders.cancel("b0")
    assert await holders.release("a0") == ["b1"]
    assert await holders.release("b1") == ["c0"]
    # A slot given to a waiter at the moment of its cancellation goes to the next waiter.
    await holders.start("d0", "e0")
    holders._releases["c0"].set()
    while not holders.semaphore._used["d"]:
        await asyncio.sleep(0)
    assert "d0" not in holders.started
    await holders.cancel("d0")
    await holders.settle()
    assert holders.started[-1] == "e0"


async def test_wait_times_out():
    semaphore = FairSemaphore(1)
    async with semaphore.taken("a", wait_s=1):
        with pytest.raises(TimeoutError):
            async with semaphore.taken("b", wait_s=0.01):
                raise AssertionError("the slot was not free")
    async with semaphore.taken("b", wait_s=0.01):
        assert semaphore._free == 0
    assert semaphore._free == 1


@pytest.mark.parametrize("seed", range(5))
async def test_no_slot_is_given_twice_or_lost(seed: int):
    chance = random.Random(seed)
    semaphore, taken, finished = FairSemaphore(4), 0, 0

    async def one(who: str) -> None:
        nonlocal taken, finished
        async with semaphore.taken(who, wait_s=60):
            taken += 1
            assert taken <= 4
            try:
                await asyncio.sleep(chance.random() * 0.002)
            finally:
                taken -= 1
        finished += 1

    tasks = [asyncio.create_task(one(chance.choice("aaaaabc"))) for _ in range(300)]
    cancelled = chance.sample(tasks, 60)
    for task in cancelled:
        await asyncio.sleep(0)
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [one for one in outcomes if one is not None and not isinstance(one, asyncio.CancelledError)] == []
    assert finished == outcomes.count(None) >= 240
    assert (semaphore._free, dict(semaphore._used), dict(semaphore._waiting)) == (4, {}, {})


async def test_busy_workspace_does_not_delay_another(database_url: str):
    database = Database(database_url, pool_size=4, wait_s=30)
    await database.open()
    ended: list[str] = []

    async def one(name: str, share: UUID) -> None:
        await database.call("SELECT pg_sleep(0.02)", share=share)
        ended.append(name)

    try:
        crowd, quiet = uuid7(), uuid7()
        many = [asyncio.create_task(one("many", crowd)) for _ in range(60)]
        await asyncio.sleep(0.05)
        await one("quiet", quiet)
        assert ended.count("many") < 30
        await asyncio.gather(*many)
        assert ended.count("many") == 60
        impatient = Database(database_url, pool_size=1, wait_s=0.1)
        await impatient.open()
        waiting = asyncio.create_task(impatient.call("SELECT pg_sleep(1)"))
        await asyncio.sleep(0.05)
        with pytest.raises(PoolTimeout):
            await impatient.call("SELECT 1")
        await waiting
        await impatient.close()
    finally:
        await database.close()
