"""Back-pressure: what is too much is refused at the door, with when to come back. What was accepted is kept."""

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

EVERY_S, RARELY_S = 1.0, 5.0
SHARE = 0.1  # of the time, about, is spent on looking
PATIENCE_S = 4.0
VOID_AFTER_S = 10.0
REMEMBERED_S = 10.0
REMEMBERED = 1000
SOONEST_S, LATEST_S = 5.0, 60.0


class LoadMonitor:
    """What is open, looked at about once a second beside the requests, which read what was found.

    A gauge that cannot be read lets everybody in.
    """

    def __init__(self, settings: Settings, database: Database) -> None:
        """`database` answers for requests; to look, it has a connection of its own, which no request keeps busy."""
        self._limits = Limits(settings.workspace_max_open, settings.max_open, settings.max_behind_s)
        self._database = database
        self._own = Database(settings.database_url, pool_size=1, application_name="turnline-gauge", wait_s=PATIENCE_S)
        self._callers: dict[UUID, float] = {}
        self._found: Reading | None = None
        self._found_at = 0.0
        # What this process let in since: between two looks a burst would go uncounted. Two, for what comes in while a look is under way.
        self._before: Counter[UUID] = Counter()
        self._since: Counter[UUID] = Counter()
        self._task: asyncio.Task[None] | None = None
        self._said = ""

    async def start(self) -> None:
        """Start looking. Waits for no server."""
        if self._limits:
            await self._own.open()
            self._task = asyncio.create_task(self._look())

    async def stop(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            await self._own.close()

    async def check(self, workspace_id: UUID, session_id: UUID, *, message_key: str | None, strategy: str | None) -> None:
        """Return where a message may be accepted.

        Raises:
            RateLimited: it would open a turn, and too much is open already.
        """
        self._callers.pop(workspace_id, None)
        self._callers[workspace_id] = time.monotonic()
        refusal = self._refusal(workspace_id)
        if refusal is not None and await backpressure.opens_one_more(
            self._database, workspace_id, session_id, message_key=message_key, strategy=strategy
        ):
            raise refusal

    def count_accepted(self, workspace_id: UUID) -> None:
        """Count a message that was accepted and waits for a reply, until the next look counts its turn."""
        if self._limits:
            self._since[workspace_id] += 1

    def _refusal(self, workspace_id: UUID) -> RateLimited | None:
        found, limits = self._found, self._limits
        if found is None or time.monotonic() > self._found_at + VOID_AFTER_S:
            return None
        here = found.by_workspace.get(workspace_id, 0) + self._before[workspace_id] + self._since[workspace_id]
        if limits.workspace and here >= limits.workspace:
            sentence = f"the workspace has {limits.workspace} open turns, which is as many as it may have; send less, or wait for replies"
            return RateLimited(sentence, retry_after_s=_soon(2 * SOONEST_S))
        if limits.behind_s and found.behind_s > limits.behind_s:
            sentence = (
                f"the service is behind: a turn has waited {found.behind_s:.0f} s for a worker, and may wait {limits.behind_s:.0f} s;"
                " send the message again later"
            )
            return RateLimited(sentence, retry_after_s=_soon(found.behind_s - limits.behind_s))
        if limits.total and found.total + self._before.total() + self._since.total() >= limits.total:
            sentence = f"the service has {limits.total} open turns, which is as many as it may have; send the message again later"
            return RateLimited(sentence, retry_after_s=_soon(2 * SOONEST_S))
        return None

    async def _look(self) -> None:
        while True:
            began = time.monotonic()
            lately = [(caller, seen) for caller, seen in self._callers.items() if seen > began - REMEMBERED_S]
            self._callers = dict(lately[-REMEMBERED:])
            self._before += self._since
            self._since = Counter()
            try:
                async with asyncio.timeout(PATIENCE_S):
                    self._found = await backpressure.read(self._own, self._limits, list(self._callers))
            except Exception as error:  # noqa: BLE001 - whatever it is, the door stays open
                self._say(f"what is open cannot be counted ({type(error).__name__}); soon every message is let in")
            else:
                self._found_at, self._before = time.monotonic(), Counter()
                self._say(self._state(self._found))
            await asyncio.sleep(min(max(EVERY_S, (time.monotonic() - began) / SHARE), RARELY_S))

    def _state(self, found: Reading) -> str:
        full = [str(workspace) for workspace, count in found.by_workspace.items() if count >= self._limits.workspace > 0]
        if full:
            return f"workspaces have too many open turns, and their messages are refused: {', '.join(full[:10])}"
        if self._limits.behind_s and found.behind_s > self._limits.behind_s:
            return "turns wait too long for a worker; messages are refused"
        if self._limits.total and found.total >= self._limits.total:
            return "too many turns are open; messages are refused"
        return ""

    def _say(self, sentence: str) -> None:
        """Log what has changed, once."""
        if sentence != self._said:
            log.warning("%s", sentence) if sentence else log.info("messages are taken again")
            self._said = sentence


def _soon(after_s: float) -> float:
    """About `after_s` from now, within bounds; not the same for all, who would all come back at once."""
    return min(max(after_s, SOONEST_S), LATEST_S) * random.uniform(1.0, 1.5)  # noqa: S311 - jitter
