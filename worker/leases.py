"""The leases of a worker process: one statement renews all of them; work under a lease that was lost is cancelled at once."""

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
    """The lease of one session. `lost`: another worker may have claimed the session. `cancel`: requested when the turn was cancelled."""

    def __init__(self, fence: int, task: asyncio.Task[object], renewed_at: float) -> None:
        self.fence = fence
        self.task = task
        self.renewed_at = renewed_at
        self.lost = False
        self.cancel = CancelToken()


class Leases:
    """Renews this process's leases for `lease_s`, every `renew_every_s`; checks every `cancel_poll_s` which turns were cancelled.

    Renewing runs on the loop that runs the turns: a blocked loop loses its leases, as it must.
    """

    def __init__(self, database: Database, *, lease_s: float, renew_every_s: float, cancel_poll_s: float = 0.4) -> None:
        self._database = database
        self._lease_s = lease_s
        self._renew_every_s = renew_every_s
        self._cancel_poll_s = cancel_poll_s
        self._leases: dict[UUID, Lease] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def __len__(self) -> int:
        return len(self._leases)

    def start(self) -> None:
        """Start renewing leases and checking for cancelled turns, on the running loop."""
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._renew_periodically(), name="renew leases"),
            loop.create_task(self._watch_for_cancellations(), name="watch for cancellations"),
        ]

    async def stop(self) -> None:
        """Stop renewing. Remaining leases run out by themselves."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    @asynccontextmanager
    async def keep(self, session_id: UUID, fence: int) -> AsyncIterator[Lease]:
        """Keep a lease that was just claimed alive during the block; the block is cancelled when the lease is lost.

        Raises:
            LeaseLost: in place of that cancellation.
        """
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - our coroutines always run in a task
        lease = Lease(fence, task, asyncio.get_running_loop().time())
        stale = self._leases.get(session_id)
        if stale is not None:  # it ran out, and the renewal has not noticed yet
            _lose(stale)
        self._leases[session_id] = lease
        try:
            yield lease
        except asyncio.CancelledError:
            if lease.lost and not task.uncancel():
                raise LeaseLost("the lease ran out or was taken over") from None
            raise
        finally:
            if self._leases.get(session_id) is lease:
                del self._leases[session_id]

    async def _renew_periodically(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._renew_every_s)
            leases = dict(self._leases)
            if not leases:
                continue
            sent_at = loop.time()
            try:
                async with asyncio.timeout(self._renew_every_s):
                    kept = await turns.renew(
                        self._database, {session: lease.fence for session, lease in leases.items()}, lease_s=self._lease_s
                    )
            except (psycopg.Error, PoolTimeout, TimeoutError) as error:
                log.warning("Leases could not be renewed: %s", type(error).__name__)
                # Our clock starts before the database's, so a lease is given up no later than it really ends.
                kept = {session for session, lease in leases.items() if sent_at - lease.renewed_at < self._lease_s - self._renew_every_s}
            else:
                for session in kept:
                    leases[session].renewed_at = sent_at
            for session, lease in leases.items():
                if session not in kept and self._leases.get(session) is lease:
                    _lose(lease)

    async def _watch_for_cancellations(self) -> None:
        """Tell turns that they were cancelled. A query that fails is repeated; the commit that ends a turn checks as well."""
        while True:
            await asyncio.sleep(self._cancel_poll_s)
            leases = dict(self._leases)
            if not leases:
                continue
            try:
                async with asyncio.timeout(self._renew_every_s):
                    cancelled = await turns.stops(self._database, leases)
            except (psycopg.Error, PoolTimeout, TimeoutError) as error:
                log.warning("Cancelled turns could not be looked up: %s", type(error).__name__)
                continue
            for session_id, reason in cancelled.items():
                leases[session_id].cancel.request(CancelReason(reason))


def _lose(lease: Lease) -> None:
    lease.lost = True
    lease.task.cancel("lease lost")
