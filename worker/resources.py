"""The resources that all turns of a worker process share: database, HTTP clients, publisher, dispatcher, leases. One set per event loop."""

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
from worker import dispatching
from worker.health_recorder import HealthRecorder
from worker.leases import Leases
from worker.lifespan import on_loop_start, on_loop_stop


class Resources:
    """Everything that running a turn needs, opened once and shared by all turns of the loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = Database(settings.database_url, pool_size=settings.db_pool_size, application_name="turnline-worker")
        self.outside = HttpClients(settings)
        self.publisher = Publisher(settings.realtime_url)
        self.dispatcher = dispatching.create(settings)
        self.leases = Leases(
            self.database, lease_s=settings.turn_lease_s, renew_every_s=settings.turn_heartbeat_s, cancel_poll_s=settings.stop_look_s
        )
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
        """Return a name for one claim: this process, and a part that is never used again."""
        return f"{self._process}:{uuid7()}"

    def secrets(self, workspace_id: UUID, integration_id: UUID, sealed: Mapping[str, str]) -> dict[str, str]:
        """Return the decrypted secrets of an integration. They must not leave this process."""
        return {name: self._box.open(workspace_id, integration_id, name, text) for name, text in sealed.items()}

    async def open(self) -> None:
        """Open everything. Does not wait for any server."""
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
    # The objects that exist now stay until the end. A worker with a thousand turns in flight creates garbage by the tens of thousands of
    # objects, nearly all of it freed by reference counting; at its default threshold the collector took a twelfth of a turn's CPU.
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


def lease_count() -> int:
    """Return how many leases this process has."""
    return sum(len(resources.leases) for resources in list(_open.values()))


@asynccontextmanager
async def acquire() -> AsyncIterator[Resources]:
    """Yield the running loop's resources. Under another pool than ours, open a set for the block and close it afterwards."""
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
