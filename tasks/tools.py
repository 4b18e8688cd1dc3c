"""Asking tools' integrations whether they are there, on a schedule."""

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
from tasks.jobs import Work, job, scheduled
from worker.health_recorder import tell, thresholds
from worker.resources import acquire

log = logging.getLogger(__name__)

RUN_S = 50.0  # on schedule: operators see what was done about once a minute; what is asked for meanwhile leaves it to the run at work


class Checks:
    """Asks integrations and records what they said. `database` acts as the application."""

    def __init__(self, settings: Settings, database: Database, outside: HttpClients) -> None:
        self._settings, self._database, self._outside = settings, database, outside
        self._box = SecretBox(settings.secret_keys.get_secret_value())

    async def check(self, workspace_id: UUID, integration_id: UUID) -> tuple[str | None, tool_health.Changed | None] | None:
        """Ask one: why it did not answer (None: it did), and its change of health. None where it is gone or switched off."""
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
        heard = tool_health.Observation(workspace_id, integration_id, error, time.monotonic() - began)
        changed = await tool_health.record(self._database, heard, thresholds(self._settings), every_s=self._settings.health_every_s)
        tell(heard, changed)
        return error, changed


@job(
    "tools.check_all_health",
    "Asks every tool's integration, each a few times an hour, whether it is there; what does not answer is not used.",
)
async def CHECK_ALL(work: Work) -> None:
    """Ask what is due, so many at a time; on schedule for less than a minute, and the next run goes on where it stopped."""
    total, now = await tool_health.how_many_are_due(work.database)
    if work.dry_run:
        work.count(due=total)
        return
    settings = work.settings
    database = Database(settings.database_url, pool_size=min(10, settings.health_parallel), application_name="turnline-health", wait_s=30)
    outside = HttpClients(settings)
    await database.open()
    checks, done = Checks(settings, database, outside), 0
    # By hand it is done when those are that were due when it began: some come due again before the others have been asked.
    ends_at, due_at = (float("inf"), now) if work.by_hand else (time.monotonic() + RUN_S, None)

    async def one(workspace_id: UUID, integration_id: UUID) -> None:
        nonlocal done
        try:
            said = await checks.check(workspace_id, integration_id)
        except Exception as broke:  # noqa: BLE001 - one tenant's integration must not keep the others from being asked
            said = None
            work.count(failed=1)
            broken = {"integration_id": str(integration_id), "error": type(broke).__name__}  # its words may quote a customer's
            log.error("a health check broke", extra=broken)  # noqa: TRY400
        done += 1
        work.progress(done, max(total, done))
        if said is not None:
            error, changed = said
            work.count(checked=1, failed=int(error is not None), changed=int(changed is not None))

    async def lane(group: asyncio.TaskGroup, places: int, *, failed: bool) -> None:
        """Ask those that failed last time, or the others, `places` at a time, until none is due or the time is over."""
        under_way, ended = set[asyncio.Task[None]](), asyncio.Event()

        def has_ended(task: asyncio.Task[None]) -> None:
            under_way.discard(task)
            ended.set()

        while time.monotonic() < ends_at:
            ended.clear()
            room = places - len(under_way)
            if room < max(1, places // 4):
                await ended.wait()
                continue
            taken = await tool_health.take(work.database, room, failed=failed, due_at=due_at)
            for place in taken:
                task = group.create_task(one(*place))
                under_way.add(task)
                task.add_done_callback(has_ended)
            if len(taken) < room:
                break

    # What failed may well be silent again for its whole time. It has places of its own, so that others do not wait behind it.
    for_failed = max(1, settings.health_parallel // 2)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(lane(group, max(1, settings.health_parallel - for_failed), failed=False))
            group.create_task(lane(group, for_failed, failed=True))
        await tool_health.forget(work.database)
    finally:
        await outside.aclose()
        await database.close()


@app.task(name="tools.check_all_health", queue="maintenance", ignore_result=True)
async def check_all_health() -> None:
    """Ask the integrations that are due. Any number of these at a time ask each once."""
    await scheduled(CHECK_ALL)


@app.task(name="tools.check_health", queue="tools", ignore_result=True)
async def check_health(integration_id: str) -> None:
    """Ask one integration now. An id of nothing is no error."""
    try:
        wanted = UUID(integration_id)
    except (ValueError, AttributeError, TypeError):
        log.warning("a health check of something that is no integration's id was dropped")
        return
    async with acquire() as resources:
        workspace_id = await tenancy.workspace_of_integration(resources.database, wanted)
        if workspace_id is not None:
            await Checks(get_settings(), resources.database, resources.outside).check(workspace_id, wanted)
