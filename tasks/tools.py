"""Health checks of tool integrations: all that are due, on a schedule, and one on request."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from uuid import UUID

from engine.errors import Rejected
from integrations.http import HttpClients
from integrations.tools.health_probes import probe
from settings import Settings, get_settings
from store import tenancy
from store.catalog import tool_health
from store.database import Database
from store.encryption import SecretBox
from tasks.celery_app import app
from tasks.jobs import JobRun, scheduled_job
from worker.health_recorder import log_change, thresholds
from worker.resources import acquire

log = logging.getLogger(__name__)

RUN_S = 50.0  # a scheduled run; so operators see about once a minute what was done, and one run is at work at a time


class HealthChecker:
    """Probes integrations and records the results. `database` acts as the application."""

    def __init__(self, settings: Settings, database: Database, outside: HttpClients) -> None:
        self._settings, self._database, self._outside = settings, database, outside
        self._box = SecretBox(settings.secret_keys.get_secret_value())

    async def check(self, workspace_id: UUID, integration_id: UUID) -> tuple[str | None, tool_health.Changed | None] | None:
        """Probe one integration; return the error (None: it answered) and the change of its health.

        Return None if the integration is deleted or disabled.
        """
        found = await tool_health.spec(self._database, workspace_id, integration_id)
        if found is None:
            return None
        spec, sealed = found
        began = time.monotonic()
        try:
            secrets = {name: self._box.open(workspace_id, integration_id, name, text) for name, text in sealed.items()}
        except Rejected as refused:
            error: str | None = str(refused)
        else:
            error = await probe(replace(spec, secrets=secrets), self._outside, self._settings.health_timeout_s)
        observation = tool_health.Observation(workspace_id, integration_id, error, time.monotonic() - began)
        changed = await tool_health.record(self._database, observation, thresholds(self._settings), every_s=self._settings.health_every_s)
        log_change(observation, changed)
        return error, changed


@scheduled_job(
    "tools.check_all_health", "Probes every tool integration a few times an hour; tools whose integrations do not answer are not used."
)
async def check_all_health(run: JobRun) -> None:
    """Probe the integrations that are due, many at a time. Any number of runs at a time probe each once.

    A scheduled run takes less than a minute; the next one continues where it stopped.
    """
    total, now = await tool_health.how_many_are_due(run.database)
    if run.dry_run:
        run.count(due=total)
        return
    settings = run.settings
    database = Database(settings.database_url, pool_size=min(10, settings.health_parallel), application_name="turnline-health", wait_s=30)
    outside = HttpClients(settings)
    await database.open()
    checker, done = HealthChecker(settings, database, outside), 0
    # A run by hand checks what was due when it began: some integrations become due again before the others have been probed.
    ends_at, due_at = (float("inf"), now) if run.by_hand else (time.monotonic() + RUN_S, None)

    async def check_one(workspace_id: UUID, integration_id: UUID) -> None:
        nonlocal done
        try:
            result = await checker.check(workspace_id, integration_id)
        except Exception as bug:  # noqa: BLE001 - one tenant's integration must not keep the others from being probed
            result = None
            run.count(failed=1)
            extra = {"integration_id": str(integration_id), "error": type(bug).__name__}  # the message may quote a customer
            log.error("Health check failed with an unexpected error", extra=extra)  # noqa: TRY400
        done += 1
        run.progress(done, max(total, done))
        if result is not None:
            error, changed = result
            run.count(checked=1, failed=int(error is not None), changed=int(changed is not None))

    async def check_due(group: asyncio.TaskGroup, limit: int, *, failed: bool) -> None:
        """Probe the integrations that failed last time, or the others, `limit` at a time, until none is due or the time is up."""
        under_way, ended = set[asyncio.Task[None]](), asyncio.Event()

        def on_done(task: asyncio.Task[None]) -> None:
            under_way.discard(task)
            ended.set()

        while time.monotonic() < ends_at:
            ended.clear()
            free = limit - len(under_way)
            if free < max(1, limit // 4):
                await ended.wait()
                continue
            taken = await tool_health.take(run.database, free, failed=failed, due_at=due_at)
            for ids in taken:
                task = group.create_task(check_one(*ids))
                under_way.add(task)
                task.add_done_callback(on_done)
            if len(taken) < free:
                break

    # An integration that failed may use up its whole timeout again. Those have slots of their own, so that others do not wait for them.
    for_failed = max(1, settings.health_parallel // 2)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(check_due(group, max(1, settings.health_parallel - for_failed), failed=False))
            group.create_task(check_due(group, for_failed, failed=True))
        await tool_health.forget(run.database)
    finally:
        await outside.aclose()
        await database.close()


@app.task(name="tools.check_health", queue="tools", ignore_result=True)
async def check_health(integration_id: str) -> None:
    """Probe one integration now. An unknown id is ignored."""
    try:
        parsed = UUID(integration_id)
    except (ValueError, AttributeError, TypeError):
        log.warning("Ignoring health check message: invalid integration id")
        return
    async with acquire() as resources:
        workspace_id = await tenancy.workspace_of_integration(resources.database, parsed)
        if workspace_id is not None:
            await HealthChecker(get_settings(), resources.database, resources.outside).check(workspace_id, parsed)
