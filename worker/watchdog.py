"""Ends a worker that has stopped working though its process lives, so that its supervisor starts another.

A worker on Redis can lose its place at the broker without noticing (docs/operations.md), a body can block the loop, a driver can wait for
ever: the process stays, answers signals, and carries nothing. So a thread beside it looks every few seconds whether the broker has said
anything, or a task has come, begun or ended. Where nothing has for `TURNLINE_WATCHDOG_S` seconds it asks Postgres whether any turn waits
that nobody carries. Where one does, and the broker can be reached, the fault is this worker's: it exits with `EXIT_CODE`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from celery import signals
from celery.bootsteps import RUN
from celery.worker import state

from settings import Settings, get_settings
from store.database import MAINTENANCE_ROLE, Database
from store.operations import stuck_turns, workers
from worker.redis_transport import Observation

log = logging.getLogger(__name__)

EXIT_CODE = 75  # sysexits.h: a temporary failure, try again
LOOK_EVERY_S = 10.0
LATE_S = 10.0  # a loop that is this late runs nothing
CLEAN_STOP_S = 10.0
RECONNECT_PAUSE_S = 32.0  # the longest that Celery waits between two attempts to reach a broker that was away
_ASK_S = 8.0


@dataclass(frozen=True, slots=True)
class Pulse:
    """What a worker has done so far, at one look. `lag_s`: how late the loop of its tasks is now."""

    replies: int
    begun: int
    active: int
    reserved: int
    limit: int
    lag_s: float = 0.0
    connected: bool = True

    @property
    def full(self) -> bool:
        """Whether it holds as many tasks as it may: it then asks the broker for none, and the tasks have time limits of their own."""
        return self.reserved >= self.limit


class Idle:
    """For how long a worker has made no progress, by the looks taken at it."""

    def __init__(self, look_every_s: float, late_s: float, now: float) -> None:
        self.seconds = 0.0
        self._look_every_s, self._late_s = look_every_s, late_s
        self._last: Pulse | None = None
        self._looked_at = now

    def look(self, pulse: Pulse, now: float) -> float:
        """Take a look at time `now` (seconds, monotonic) and return for how long there has been no progress.

        A process that was itself stopped for a while is not blamed for it: two looks count as no further apart than twice their cadence.
        """
        passed = min(now - self._looked_at, 2 * self._look_every_s)
        moved = self._last is None or _doings(pulse) != _doings(self._last)
        self._last, self._looked_at = pulse, now
        self.seconds = 0.0 if pulse.lag_s < self._late_s and (moved or pulse.full) else self.seconds + passed
        return self.seconds


def _doings(pulse: Pulse) -> tuple[int, int, int, int]:
    return pulse.replies, pulse.begun, pulse.active, pulse.reserved


def pulse_of(consumer: Any) -> Pulse:
    """The pulse of the worker that `consumer` (Celery's) belongs to. May be called from any thread."""
    connection = consumer.connection
    wire = getattr(connection, "_connection", None)  # the attribute without the underscore would connect
    return Pulse(
        replies=Observation.replies + int(getattr(wire, "bytes_recv", 0) or 0),
        begun=sum(list(state.total_count.values())),
        active=len(state.active_requests),
        reserved=len(state.reserved_requests),
        limit=consumer.pool.num_processes,
        connected=connection is not None,
        lag_s=getattr(consumer.pool, "loop_lag_s", 0.0),
    )


class Watchdog(threading.Thread):
    """Looks after one worker, from its first readiness to its stop. A thread of its own, for the loop may be what is stuck."""

    def __init__(self, consumer: Any, settings: Settings) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._consumer = consumer
        self._name: str = consumer.hostname
        self._limit_s = settings.watchdog_s
        self._look_every_s = min(LOOK_EVERY_S, settings.watchdog_s / 3)
        self._url = settings.maintenance_database_url or settings.database_url
        self._stopped = threading.Event()
        self._began = time.monotonic()

    def stop(self) -> None:
        """Look no more. A worker that stops in order takes as long as its turns need."""
        self._stopped.set()

    def run(self) -> None:
        """Look until told to stop, or until the worker has to be ended."""
        asyncio.run(self._watch())

    async def _watch(self) -> None:
        database = Database(self._url, role=MAINTENANCE_ROLE, pool_size=1, application_name="turnline-watchdog", wait_s=_ASK_S)
        await database.open()
        idle = Idle(self._look_every_s, min(LATE_S, self._limit_s / 2), time.monotonic())
        while not self._stopped.is_set():
            await asyncio.sleep(self._look_every_s)
            pulse = pulse_of(self._consumer)
            waiting = await self._looked(database, pulse, idle.look(pulse, time.monotonic()))
            if (waiting or not pulse.connected) and not await asyncio.to_thread(self._broker_answers):
                idle.seconds = 0.0  # no fault of the worker's; its time begins when the broker is back
            elif waiting and not self._stopping():
                await self._note_stall(database)
                self._end_worker(waiting, idle.seconds, pulse)
        await database.close()

    async def _looked(self, database: Database, pulse: Pulse, idle_s: float) -> UUID | None:
        """Leave word of the look; where it has been idle for too long, return a turn that waits for a worker."""
        try:
            async with asyncio.timeout(_ASK_S):
                age_s = time.monotonic() - self._began
                await workers.seen(database, self._name, os.getpid(), age_s=age_s, idle_s=idle_s, running=pulse.active)
                allowed_s = self._limit_s if pulse.connected else self._limit_s + RECONNECT_PAUSE_S
                stuck = await stuck_turns.open_turns(database, 1, self._limit_s, runnable=True) if idle_s >= allowed_s else []
        except Exception as error:  # noqa: BLE001 - a database that cannot be asked is no fault of the worker's
            log.info("the watchdog could not ask the database: %s", type(error).__name__)
            return None
        return stuck[0]["id"] if stuck else None

    async def _note_stall(self, database: Database) -> None:
        try:
            async with asyncio.timeout(_ASK_S):
                await workers.stalled(database, self._name)
        except Exception as error:  # noqa: BLE001 - the log says it, too
            log.info("the stall could not be noted in the database: %s", type(error).__name__)

    def _stopping(self) -> bool:
        return self._stopped.is_set() or self._consumer.controller.blueprint.state != RUN

    def _broker_answers(self) -> bool:
        try:
            with self._consumer.app.connection_for_read() as connection:
                connection.ensure_connection(max_retries=1, interval_start=0, timeout=5)
        except Exception as error:  # noqa: BLE001 - every transport has errors of its own
            log.info("the watchdog could not reach the broker: %s", type(error).__name__)
            return False
        return True

    def _end_worker(self, waiting: UUID, idle_s: float, pulse: Pulse) -> None:
        log.critical(
            "This worker has got nowhere for %.0f s while turns wait that nobody carries; it exits with %d, to be started again.",
            idle_s,
            EXIT_CODE,
            extra={
                "waiting_turn": str(waiting),
                "loop_lag_s": round(pulse.lag_s, 1),
                "tasks_active": pulse.active,
                "tasks_held": pulse.reserved,
            },
        )
        vars(state)["should_stop"] = EXIT_CODE  # in order, if its consumer still turns
        time.sleep(CLEAN_STOP_S)
        _flush_logs()
        os._exit(EXIT_CODE)


def _flush_logs() -> None:
    for handler in logging.getLogger().handlers:
        handler.flush()


_watchdog: Watchdog | None = None


@signals.worker_ready.connect
def _start(sender: Any, **_: object) -> None:
    """Celery says this after every reconnect; one watchdog serves them all."""
    global _watchdog
    settings = get_settings()
    if not settings.watchdog_s:
        log.warning("The watchdog is off (TURNLINE_WATCHDOG_S is 0): a worker that hangs will hang until somebody notices.")
    elif _watchdog is None:
        _watchdog = Watchdog(sender, settings)
        _watchdog.start()


@signals.worker_shutting_down.connect
def _stop(**_: object) -> None:
    if _watchdog is not None:
        _watchdog.stop()
