"""A fair semaphore: the holder of the fewest slots goes next."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager

SHARE = 4  # while others are active, each may hold a quarter of the slots
ACTIVE_S = 10.0


class FairSemaphore:
    """`slots` that are taken for a while, each for a tenant, so that one tenant's many requests do not delay another's few.

    The tenant that holds the fewest slots goes next; among equals, the one served longest ago; a tenant's own requests in the order in
    which they came. Slots that are taken also load the server behind them. So a tenant may take all slots only if no other tenant has
    come for `active_s`, and a quarter of them otherwise. For one event loop.
    """

    def __init__(self, slots: int, *, active_s: float = ACTIVE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._free = slots
        self._part = max(1, slots // SHARE)
        self._used: Counter[Hashable] = Counter()
        self._waiting: OrderedDict[Hashable, deque[asyncio.Future[None]]] = OrderedDict()
        self._active_s, self._clock = active_s, clock
        self._latest: Hashable = None
        self._mixed_until = 0.0

    @asynccontextmanager
    async def taken(self, who: Hashable, *, wait_s: float, counts: bool = True) -> AsyncIterator[None]:
        """Hold a slot for the block. Without `counts`, `who` waits its turn like a tenant, but does not limit the others to a quarter.

        Raises:
            TimeoutError: no slot was free within `wait_s`.
        """
        if counts:
            self._notice(who)
        if self._free and who not in self._waiting and self._may(who):
            self._give(who)
        else:
            await self._wait(who, wait_s)
        try:
            yield
        finally:
            self._take_back(who)

    async def _wait(self, who: Hashable, wait_s: float) -> None:
        place = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(who, deque()).append(place)
        try:
            async with asyncio.timeout(wait_s):
                await place
        except BaseException:
            if place.done() and not place.cancelled():  # given at the moment in which its taker gave up
                self._take_back(who)
            else:
                self._forget(who, place)
            raise

    def _notice(self, who: Hashable) -> None:
        if who != self._latest:
            if self._latest is not None:
                self._mixed_until = self._clock() + self._active_s
            self._latest = who

    def _may(self, who: Hashable) -> bool:
        return self._used[who] < self._part or self._clock() > self._mixed_until

    def _give(self, who: Hashable) -> None:
        self._free -= 1
        self._used[who] += 1

    def _take_back(self, who: Hashable) -> None:
        self._free += 1
        self._used[who] -= 1
        if not self._used[who]:
            del self._used[who]
        while self._free and self._waiting:
            following = min(self._waiting, key=lambda one: self._used[one])
            if not self._may(following):
                return
            places = self._waiting.pop(following)
            place = places.popleft()
            if places:
                self._waiting[following] = places  # behind the others, because it was served
            if not place.cancelled():
                self._give(following)
                place.set_result(None)

    def _forget(self, who: Hashable, place: asyncio.Future[None]) -> None:
        places = self._waiting.get(who)
        if places is not None and place in places:
            places.remove(place)
            if not places:
                del self._waiting[who]
