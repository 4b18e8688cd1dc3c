"""Back-pressure: refuse messages that would open a turn while too many are open, and say when to try again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter
from uuid import UUID

from engine.errors import RateLimited
from settings import Settings
from store.conversations import backpressure
from store.conversations.backpressure import Limits, Reading
from store.database import Database

log = logging.getLogger(__name__)

MIN_INTERVAL_S, MAX_INTERVAL_S = 1.0, 5.0  # between two readings
BUSY_SHARE = 0.1  # of the time may be spent on reading, about
READ_TIMEOUT_S = 4.0
STALE_AFTER_S = 10.0  # an older reading refuses nothing
CALLER_S = 10.0  # since its last message, a workspace's open turns are counted
MAX_CALLERS = 1000
MIN_RETRY_S, MAX_RETRY_S = 5.0, 60.0


class LoadMonitor:
    """Counts open turns about once a second, in the background; requests are checked against the last count.

    If counting fails, every message is accepted.
    """

    def __init__(self, settings: Settings, database: Database) -> None:
        """`database` is used for requests. Counting has a connection of its own, so that no request keeps it busy."""
        self._limits = Limits(settings.workspace_max_open, settings.max_open, settings.max_behind_s)
        self._database = database
        self._own_database = Database(settings.database_url, pool_size=1, application_name="turnline-gauge", wait_s=READ_TIMEOUT_S)
        self._callers: dict[UUID, float] = {}
        self._reading: Reading | None = None
        self._read_at = 0.0
        # Messages this process accepted since the last reading; without them a burst between two readings would go uncounted. There are
        # two counters because messages are also accepted while a reading is under way.
        self._accepted_before: Counter[UUID] = Counter()
        self._accepted_since: Counter[UUID] = Counter()
        self._task: asyncio.Task[None] | None = None
        self._logged = ""

    async def start(self) -> None:
        """Start counting. Does not wait for the database."""
        if self._limits:
            await self._own_database.open()
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop counting."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            await self._own_database.close()

    async def check(self, workspace_id: UUID, session_id: UUID, *, message_key: str | None, strategy: str | None) -> None:
        """Return if a message may be accepted.

        Raises:
            RateLimited: the message would open a turn, and a limit is reached.
        """
        self._callers.pop(workspace_id, None)
        self._callers[workspace_id] = time.monotonic()
        refusal = self._refusal(workspace_id)
        if refusal is not None and await backpressure.opens_one_more(
            self._database, workspace_id, session_id, message_key=message_key, strategy=strategy
        ):
            raise refusal

    def count_accepted(self, workspace_id: UUID) -> None:
        """Count an accepted message with a queued turn, until the next reading counts that turn."""
        if self._limits:
            self._accepted_since[workspace_id] += 1

    def _refusal(self, workspace_id: UUID) -> RateLimited | None:
        reading, limits = self._reading, self._limits
        if reading is None or time.monotonic() > self._read_at + STALE_AFTER_S:
            return None
        in_workspace = reading.by_workspace.get(workspace_id, 0) + self._accepted_before[workspace_id] + self._accepted_since[workspace_id]
        if limits.workspace and in_workspace >= limits.workspace:
            message = f"the workspace has {limits.workspace} open turns, which is its limit; send less, or wait for replies"
            return RateLimited(message, retry_after_s=_retry_after(2 * MIN_RETRY_S))
        if limits.behind_s and reading.behind_s > limits.behind_s:
            message = (
                f"the service is overloaded: a turn has waited {reading.behind_s:.0f} s for a worker, and the limit is"
                f" {limits.behind_s:.0f} s; send the message again later"
            )
            return RateLimited(message, retry_after_s=_retry_after(reading.behind_s - limits.behind_s))
        if limits.total and reading.total + self._accepted_before.total() + self._accepted_since.total() >= limits.total:
            message = f"the service has {limits.total} open turns, which is its limit; send the message again later"
            return RateLimited(message, retry_after_s=_retry_after(2 * MIN_RETRY_S))
        return None

    async def _run(self) -> None:
        while True:
            began = time.monotonic()
            recent = [(caller, seen) for caller, seen in self._callers.items() if seen > began - CALLER_S]
            self._callers = dict(recent[-MAX_CALLERS:])
            self._accepted_before += self._accepted_since
            self._accepted_since = Counter()
            try:
                async with asyncio.timeout(READ_TIMEOUT_S):
                    self._reading = await backpressure.read(self._own_database, self._limits, list(self._callers))
            except Exception as error:  # noqa: BLE001 - whatever failed, messages must still be accepted
                self._log_change(f"Counting open turns failed ({type(error).__name__}); soon every message will be accepted")
            else:
                self._read_at, self._accepted_before = time.monotonic(), Counter()
                self._log_change(self._overload(self._reading))
            await asyncio.sleep(min(max(MIN_INTERVAL_S, (time.monotonic() - began) / BUSY_SHARE), MAX_INTERVAL_S))

    def _overload(self, reading: Reading) -> str:
        """Return the log line for a limit that is reached, or ""."""
        full = [str(workspace) for workspace, count in reading.by_workspace.items() if count >= self._limits.workspace > 0]
        if full:
            return f"Refusing messages of workspaces at their limit of open turns: {', '.join(full[:10])}"
        if self._limits.behind_s and reading.behind_s > self._limits.behind_s:
            return "Refusing messages: turns wait too long for a worker"
        if self._limits.total and reading.total >= self._limits.total:
            return "Refusing messages: too many turns are open"
        return ""

    def _log_change(self, line: str) -> None:
        """Log `line` if it differs from the last one."""
        if line != self._logged:
            log.warning("%s", line) if line else log.info("Accepting messages again")
            self._logged = line


def _retry_after(after_s: float) -> float:
    """Return about `after_s`, within bounds, and with jitter so that not all clients come back at once."""
    return min(max(after_s, MIN_RETRY_S), MAX_RETRY_S) * random.uniform(1.0, 1.5)  # noqa: S311 - jitter
