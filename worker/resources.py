"""What a worker process keeps open: database, outside, passing news, ringer, leases. One set per event loop."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from uuid import UUID

from uuid_utils.compat import uuid7

from engine.turn.context import Limits
from integrations.executor import Performer
from integrations.http import HttpClients
from realtime.publisher import Publisher
from settings import Settings, get_settings
from store.database import Database
from store.encryption import SecretBox
from tasks.dispatcher import Dispatcher
from worker.health_recorder import HealthRecorder
from worker.leases import Leases
from worker.lifespan import on_loop_start, on_loop_stop


class Resources:
    """Everything a turn's task needs, opened once and shared by all turns of the loop."""

    def __init__(self, settings: Settings) -> None:
        from tasks.celery_app import app

        self.settings = settings
        self.database = Database(settings.database_url, pool_size=settings.db_pool_size, application_name="turnline-worker")
        self.outside = HttpClients(settings)
        self.publisher = Publisher(settings.realtime_url)
        self.dispatcher = Dispatcher(app, settings.database_url)
        self.leases = Leases(self.database, lease_s=settings.turn_lease_s, every_s=settings.turn_heartbeat_s, look_s=settings.stop_look_s)
        self.limits = Limits(
            model_calls=settings.turn_model_calls,
            tool_calls=settings.turn_tool_calls,
            steps=settings.turn_steps,
            wall_clock_s=settings.turn_wall_clock_s,
        )
        self.health_recorder = HealthRecorder(self.database, settings)
        self.performer = Performer(settings, self.outside, self.health_recorder.of)
        self._box = SecretBox(settings.secret_keys.get_secret_value())
        self._process = f"{socket.gethostname()}:{os.getpid()}"

    def owner(self) -> str:
        """A name for one claim: this process, and a part never used again."""
        return f"{self._process}:{uuid7()}"

    def secrets(self, workspace_id: UUID, integration_id: UUID, sealed: Mapping[str, str]) -> dict[str, str]:
        """The plain secrets of an integration; they stay in this process."""
        return {name: self._box.open(workspace_id, integration_id, name, text) for name, text in sealed.items()}

    async def open(self) -> None:
        """Open what needs opening; waits for no server."""
        await self.database.open()
        await self.publisher.open()
        self.dispatcher.start()
        self.leases.start()
        self.health_recorder.start()

    async def close(self) -> None:
        """Close everything, after the last turn."""
        await self.leases.stop()
        await self.health_recorder.stop()
        await asyncio.to_thread(self.dispatcher.close)
        await self.publisher.close()
        await self.outside.aclose()
        await self.database.close()


_open: dict[asyncio.AbstractEventLoop, Resources] = {}


@on_loop_start
async def _start() -> None:
    # What was loaded to get here stays. A worker with a thousand turns in flight makes garbage by the tens of thousands of objects,
    # nearly all of it freed without the collector's help; at its default threshold it took a twelfth of a turn's CPU.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    resources = Resources(get_settings())
    await resources.open()
    _open[asyncio.get_running_loop()] = resources


@on_loop_stop
async def _stop() -> None:
    resources = _open.pop(asyncio.get_running_loop(), None)
    if resources is not None:
        await resources.close()


def leases_held() -> int:
    """How many leases this process holds."""
    return sum(len(resources.leases) for resources in list(_open.values()))


@asynccontextmanager
async def acquire() -> AsyncIterator[Resources]:
    """The running loop's runtime; under another pool than ours, one opened for the block."""
    resources = _open.get(asyncio.get_running_loop())
    if resources is not None:
        yield resources
        return
    resources = Resources(get_settings())
    await resources.open()
    try:
        yield resources
    finally:
        await resources.close()
