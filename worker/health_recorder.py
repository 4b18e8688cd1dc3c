"""The health of tool integrations as seen by real calls: collected by a worker process, and written now and then."""

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
# A written success puts the next probe off by more than half an interval, so successes that are not written are never out of date by then.
SUCCESSES_PER_INTERVAL = 4


def thresholds(settings: Settings) -> Thresholds:
    """Return the health thresholds of the settings."""
    return Thresholds(settings.health_degraded_after, settings.health_unhealthy_after, settings.health_healthy_after)


class HealthRecorder:
    """Records the results of tool calls, one instance per worker process.

    A success is written a few times per probe interval, which puts the probe off: integrations in use are not probed, and a server that
    answers calls but not probes stays in use. A success that is not written costs one look-up. However many calls fail between two
    writes, they count as one failure: a server that was away for a second is not unhealthy.
    """

    def __init__(self, database: Database, settings: Settings, *, write_every_s: float = WRITE_EVERY_S) -> None:
        self._database, self._settings, self._every_s = database, settings, write_every_s
        self._unwritten: dict[UUID, tool_health.Observation] = {}
        self._failed: set[UUID] = set()
        self._success_written_until: dict[UUID, float] = {}  # on the monotonic clock
        self._task: asyncio.Task[None] | None = None

    def of(self, workspace_id: UUID, degraded: Collection[UUID] = ()) -> OnResult:
        """Return the callback for each request of a workspace's tool calls. Successes of `degraded` integrations are always written."""

        def on_result(integration_id: UUID, error: str | None) -> None:
            if error is not None:
                self._failed.add(integration_id)
            elif (
                time.monotonic() < self._success_written_until.get(integration_id, 0.0)
                and integration_id not in self._failed
                and integration_id not in degraded
            ):
                return
            self._unwritten[integration_id] = tool_health.Observation(workspace_id, integration_id, error)

        return on_result

    def start(self) -> None:
        """Start writing periodically, on the running loop."""
        self._task = asyncio.create_task(self._write_periodically())

    async def stop(self) -> None:
        """Write the remaining results, and stop."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self.write()

    async def write(self) -> None:
        """Write the results since the last call. If the database is down they are dropped: later calls and probes give new ones."""
        unwritten, self._unwritten = self._unwritten, {}
        now = time.monotonic()
        self._success_written_until = {one: until for one, until in self._success_written_until.items() if now < until}
        for observation in unwritten.values():
            try:
                changed = await tool_health.record(
                    self._database, observation, thresholds(self._settings), every_s=self._settings.health_every_s
                )
            except Exception as error:  # noqa: BLE001 - only evidence is lost; the worker continues
                log.warning("Tool health could not be written: %s", type(error).__name__)
                return
            if observation.error is None:
                self._failed.discard(observation.integration_id)
                until = time.monotonic() + self._settings.health_every_s / SUCCESSES_PER_INTERVAL
                self._success_written_until[observation.integration_id] = until
            log_change(observation, changed)

    async def _write_periodically(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            await self.write()


def log_change(observation: tool_health.Observation, changed: tool_health.Changed | None) -> None:
    """Log a change of health for operators."""
    if changed is not None:
        worse = changed.now in ("degraded", "unhealthy")
        extra = {
            "integration_id": str(observation.integration_id),
            "tool_id": str(changed.tool_id),
            "before": changed.before,
            "error": observation.error,
        }
        log.log(logging.WARNING if worse else logging.INFO, "Tool integration is %s", changed.now, extra=extra)
