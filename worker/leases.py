"""The heartbeat of a worker process: one statement renews every lease it holds; what it no longer holds is dropped at once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import psycopg
from psycopg_pool import PoolTimeout

from engine.enums import CancelReason
from engine.errors import LeaseLost
from engine.turn.cancellation import CancelToken
from store.conversations import turns
from store.database import Database

log = logging.getLogger(__name__)


class Lease:
    """A held lease. `lost` once another worker may have taken the session over; `stop` is asked where somebody wants its turn to stop."""

    def __init__(self, fence: int, task: asyncio.Task[object], renewed_at: float) -> None:
        self.fence = fence
        self.task = task
        self.renewed_at = renewed_at
        self.lost = False
        self.cancel = CancelToken()


class Leases:
    """The leases this process holds, renewed every `every_s` for `lease_s`; every `look_s` it is asked which of their turns shall stop.

    The heartbeat runs on the loop that runs the turns: a stuck loop loses its leases, as it must.
    """

    def __init__(self, database: Database, *, lease_s: float, every_s: float, look_s: float = 0.4) -> None:
        self._database = database
        self._lease_s = lease_s
        self._every_s = every_s
        self._look_s = look_s
        self._held: dict[UUID, Lease] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def __len__(self) -> int:
        return len(self._held)

    def start(self) -> None:
        """Start beating and looking, on the running loop."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._beat(), name="lease heartbeat"), loop.create_task(self._look(), name="stops")]

    async def stop(self) -> None:
        """Stop beating. Leases still held run out by themselves."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    @asynccontextmanager
    async def hold(self, session_id: UUID, fence: int) -> AsyncIterator[Lease]:
        """Keep a lease just taken alive during the block, which is cancelled when the lease is lost.

        Raises:
            LeaseLost: instead of that cancellation.
        """
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine of ours always runs in one
        lease = Lease(fence, task, asyncio.get_running_loop().time())
        stale = self._held.get(session_id)
        if stale is not None:  # it ran out here without the heartbeat having noticed yet
            _lose(stale)
        self._held[session_id] = lease
        try:
            yield lease
        except asyncio.CancelledError:
            if lease.lost and not task.uncancel():
                raise LeaseLost("the lease ran out or was taken over") from None
            raise
        finally:
            if self._held.get(session_id) is lease:
                del self._held[session_id]

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._every_s)
            held = dict(self._held)
            if not held:
                continue
            sent_at = loop.time()
            try:
                async with asyncio.timeout(self._every_s):
                    kept = await turns.renew(
                        self._database, {session: lease.fence for session, lease in held.items()}, lease_s=self._lease_s
                    )
            except (psycopg.Error, PoolTimeout, TimeoutError) as error:
                log.warning("leases could not be renewed: %s", type(error).__name__)
                # Our clock starts before the database's did, so a lease is given up no later than it really ends.
                kept = {session for session, lease in held.items() if sent_at - lease.renewed_at < self._lease_s - self._every_s}
            else:
                for session in kept:
                    held[session].renewed_at = sent_at
            for session, lease in held.items():
                if session not in kept and self._held.get(session) is lease:
                    _lose(lease)

    async def _look(self) -> None:
        """Tell turns that somebody wants them to stop. A look that fails is followed by another; the settling commit looks as well."""
        while True:
            await asyncio.sleep(self._look_s)
            held = dict(self._held)
            if not held:
                continue
            try:
                async with asyncio.timeout(self._every_s):
                    wanted = await turns.stops(self._database, held)
            except (psycopg.Error, PoolTimeout, TimeoutError) as error:
                log.warning("it could not be asked which turns shall stop: %s", type(error).__name__)
                continue
            for session_id, reason in wanted.items():
                held[session_id].cancel.request(CancelReason(reason))


def _lose(lease: Lease) -> None:
    lease.lost = True
    lease.task.cancel("lease lost")
