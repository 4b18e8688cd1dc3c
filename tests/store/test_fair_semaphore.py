"""The order of waiting: one tenant's many requests do not delay another's, and no waiter is forgotten."""

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
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """Somebodies who take places of `shares` and keep them until told to leave."""

    def __init__(self, shares: FairSemaphore) -> None:
        self.shares = shares
        self.began: list[str] = []
        self._leave: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, *names: str) -> None:
        """`names` come one after the other; the first letter says whose they are."""
        for name in names:
            self._leave[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._sit(name))
            await asyncio.sleep(0)
        await self.settle()

    async def leave(self, *names: str) -> list[str]:
        """`names` leave; who began by that, in order."""
        before = len(self.began)
        for name in names:
            self._leave[name].set()
            await self.settle()
        return self.began[before:]

    async def cancel(self, name: str) -> None:
        self.tasks[name].cancel()
        await asyncio.gather(self.tasks[name], return_exceptions=True)

    @staticmethod
    async def settle() -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async def _sit(self, name: str) -> None:
        async with self.shares.taken(name[0], wait_s=60):
            self.began.append(name)
            await self._leave[name].wait()


async def test_single_tenant_may_hold_all_slots():
    bench = Bench(FairSemaphore(8))
    await bench.come(*(f"a{n}" for n in range(10)))
    assert bench.began == [f"a{n}" for n in range(8)]
    assert await bench.leave("a3") == ["a8"]


async def test_tenant_is_limited_while_others_are_active():
    clock = Clock()
    bench = Bench(FairSemaphore(8, clock=clock))
    await bench.come("b0", *(f"a{n}" for n in range(5)))
    assert bench.began == ["b0", "a0", "a1"]
    assert await bench.leave("b0") == []
    await bench.come("c0", "b1", "b2", "b3")
    assert bench.began[3:] == ["c0", "b1", "b2"], "there is room for others"

    clock.now += 11
    assert await bench.leave("b1") == ["b3", "a2", "a3", "a4"], "no other tenant was active for a while, so all slots may be taken"


async def test_holder_of_fewest_slots_goes_next_in_order():
    bench = Bench(FairSemaphore(4))
    await bench.come("a0", "a1", "a2", "a3", "a4", "a5", "b0", "b1")
    assert bench.began == ["a0", "a1", "a2", "a3"]
    assert await bench.leave("a0") == ["b0"]
    assert await bench.leave("a1", "a2", "a3") == ["a4"]
    assert await bench.leave("a4", "b0") == ["a5", "b1"]


async def test_cancelled_waiter_holds_no_slot():
    bench = Bench(FairSemaphore(1))
    await bench.come("a0", "b0", "b1", "c0")
    await bench.cancel("b0")
    assert await bench.leave("a0") == ["b1"]
    assert await bench.leave("b1") == ["c0"]
    # Given a place in the very moment of giving up: it goes to the next.
    await bench.come("d0", "e0")
    bench._leave["c0"].set()
    while not bench.shares._used["d"]:
        await asyncio.sleep(0)
    assert "d0" not in bench.began
    await bench.cancel("d0")
    await bench.settle()
    assert bench.began[-1] == "e0"


async def test_wait_times_out():
    shares = FairSemaphore(1)
    async with shares.taken("a", wait_s=1):
        with pytest.raises(TimeoutError):
            async with shares.taken("b", wait_s=0.01):
                raise AssertionError("it was not free")
    async with shares.taken("b", wait_s=0.01):
        assert shares._free == 0
    assert shares._free == 1


@pytest.mark.parametrize("seed", range(5))
async def test_no_slot_is_given_twice_or_lost(seed: int):
    chance = random.Random(seed)
    shares, taken, finished = FairSemaphore(4), 0, 0

    async def one(who: str) -> None:
        nonlocal taken, finished
        async with shares.taken(who, wait_s=60):
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
    assert (shares._free, dict(shares._used), dict(shares._waiting)) == (4, {}, {})


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
