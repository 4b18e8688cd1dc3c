"""What real calls say about the health of tools' integrations: gathered by a worker, and written now and then."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Collection
from uuid import UUID

from engine.tools.health import Thresholds
from integrations.tools.retries import OnResult
from settings import Settings
from store.catalog import tool_health
from store.database import Database

log = logging.getLogger(__name__)

WRITE_EVERY_S = 5.0
# A written answer puts the next probe off by more than half an interval: answers that are not written are never old by then.
WRITTEN_IN_AN_INTERVAL = 4


def thresholds(settings: Settings) -> Thresholds:
    """The settings' thresholds."""
    return Thresholds(settings.health_degraded_after, settings.health_unhealthy_after, settings.health_healthy_after)


class HealthRecorder:
    """One per worker process. That calls go well is written a few times in the interval in which a probe would ask, which puts the
    probe off: what is in use is not asked, and a server that answers calls and not probes stays in use. Between, it costs a look-up.

    However many calls fail within a moment, they count as one failure: a server that was away for a second is not unhealthy.
    """

    def __init__(self, database: Database, settings: Settings, *, write_every_s: float = WRITE_EVERY_S) -> None:
        self._database, self._settings, self._every_s = database, settings, write_every_s
        self._news: dict[UUID, tool_health.Observation] = {}
        self._failed: set[UUID] = set()
        self._known_until: dict[UUID, float] = {}  # that it answers is written; on the monotonic clock
        self._task: asyncio.Task[None] | None = None

    def of(self, workspace_id: UUID, degraded: Collection[UUID] = ()) -> OnResult:
        """What is told of each request of a workspace's tool calls. An answer of one of `degraded` is news at once."""

        def on_result(integration_id: UUID, error: str | None) -> None:
            if error is not None:
                self._failed.add(integration_id)
            elif (
                time.monotonic() < self._known_until.get(integration_id, 0.0)
                and integration_id not in self._failed
                and integration_id not in degraded
            ):
                return
            self._news[integration_id] = tool_health.Observation(workspace_id, integration_id, error)

        return on_result

    def start(self) -> None:
        """Start writing, on the running loop."""
        self._task = asyncio.create_task(self._keep_writing())

    async def stop(self) -> None:
        """Write what is left, and stop."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self.write()

    async def write(self) -> None:
        """Write what was heard since. Where the database is away it is dropped: the next probe will hear it again."""
        news, self._news = self._news, {}
        now = time.monotonic()
        self._known_until = {one: until for one, until in self._known_until.items() if now < until}
        for heard in news.values():
            try:
                changed = await tool_health.record(self._database, heard, thresholds(self._settings), every_s=self._settings.health_every_s)
            except Exception as error:  # noqa: BLE001 - evidence only; the worker goes on
                log.warning("the health of tools could not be written: %s", type(error).__name__)
                return
            if heard.error is None:
                self._failed.discard(heard.integration_id)
                self._known_until[heard.integration_id] = time.monotonic() + self._settings.health_every_s / WRITTEN_IN_AN_INTERVAL
            log_change(heard, changed)

    async def _keep_writing(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            await self.write()


def log_change(heard: tool_health.Observation, changed: tool_health.Changed | None) -> None:
    """Log a change for operators."""
    if changed is not None:
        worse = changed.now in ("degraded", "unhealthy")
        seen = {
            "integration_id": str(heard.integration_id),
            "tool_id": str(changed.tool_id),
            "before": changed.before,
            "error": heard.error,
        }
        log.log(logging.WARNING if worse else logging.INFO, "a tool's integration is %s", changed.now, extra=seen)
