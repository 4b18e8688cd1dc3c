"""Ends a worker that has stopped working although its process lives, so that its supervisor starts another.

A worker on Redis can lose its subscription at the broker without noticing (docs/operations.md), a body can block the loop, a driver can
wait for ever: the process stays, answers signals, and runs nothing. So a thread beside it checks every few seconds whether the broker has
replied, or a task was received, started or ended. If nothing of that has happened for `TURNLINE_WATCHDOG_S` seconds, it asks Postgres for
turns that are pending and unclaimed. If there is one and the broker can be reached, the fault is this worker's: it exits with `EXIT_CODE`.
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
from worker.redis_transport import BrokerReplies

log = logging.getLogger(__name__)

EXIT_CODE = 75  # sysexits.h: a temporary failure, try again
CHECK_EVERY_S = 10.0
LATE_S = 10.0  # a loop with this lag runs nothing
CLEAN_STOP_S = 10.0
RECONNECT_PAUSE_S = 32.0  # Celery's longest pause between two attempts to reach a broker that was away
_QUERY_S = 8.0


@dataclass(frozen=True, slots=True)
class Activity:
    """A worker's counters at one check. `replies` of the broker and `started` tasks only grow; `lag_s` is the lag of its event loop."""

    replies: int
    started: int
    active: int
    reserved: int
    limit: int
    lag_s: float = 0.0
    connected: bool = True

    @property
    def full(self) -> bool:
        """Return True if it has as many tasks as it may have. It then fetches no more; the tasks have time limits of their own."""
        return self.reserved >= self.limit

    def counters(self) -> tuple[int, int, int, int]:
        """Return the counters; a change of any of them is progress."""
        return self.replies, self.started, self.active, self.reserved


class IdleTimer:
    """Measures for how long a worker has made no progress."""

    def __init__(self, check_every_s: float, late_s: float, now: float) -> None:
        self.seconds = 0.0
        self._check_every_s, self._late_s = check_every_s, late_s
        self._last: Activity | None = None
        self._checked_at = now

    def check(self, activity: Activity, now: float) -> float:
        """Compare with the last check; return for how long there has been no progress. `now` is in seconds, on the monotonic clock.

        A process that was itself stopped for a while is not blamed for it: two checks count as at most twice the usual interval apart.
        """
        passed = min(now - self._checked_at, 2 * self._check_every_s)
        progress = self._last is None or activity.counters() != self._last.counters()
        self._last, self._checked_at = activity, now
        self.seconds = 0.0 if activity.lag_s < self._late_s and (progress or activity.full) else self.seconds + passed
        return self.seconds


def activity_of(consumer: Any) -> Activity:
    """Return the counters of the worker that `consumer` (Celery's) belongs to. May be called from any thread."""
    connection = consumer.connection
    transport = getattr(connection, "_connection", None)  # the attribute without the underscore would connect
    return Activity(
        replies=BrokerReplies.count + int(getattr(transport, "bytes_recv", 0) or 0),
        started=sum(list(state.total_count.values())),
        active=len(state.active_requests),
        reserved=len(state.reserved_requests),
        limit=consumer.pool.num_processes,
        connected=connection is not None,
        lag_s=getattr(consumer.pool, "loop_lag_s", 0.0),
    )


class Watchdog(threading.Thread):
    """Watches one worker from the moment it is ready until it stops. A thread of its own, because the loop may be what is stuck."""

    def __init__(self, consumer: Any, settings: Settings) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._consumer = consumer
        self._name: str = consumer.hostname
        self._limit_s = settings.watchdog_s
        self._check_every_s = min(CHECK_EVERY_S, settings.watchdog_s / 3)
        self._url = settings.maintenance_database_url or settings.database_url
        self._stopped = threading.Event()
        self._began = time.monotonic()

    def stop(self) -> None:
        """Stop watching. A worker that shuts down in order takes as long as its turns need."""
        self._stopped.set()

    def run(self) -> None:
        """Watch until `stop` is called, or until the worker has to be ended."""
        asyncio.run(self._watch())

    async def _watch(self) -> None:
        database = Database(self._url, role=MAINTENANCE_ROLE, pool_size=1, application_name="turnline-watchdog", wait_s=_QUERY_S)
        await database.open()
        idle = IdleTimer(self._check_every_s, min(LATE_S, self._limit_s / 2), time.monotonic())
        while not self._stopped.is_set():
            await asyncio.sleep(self._check_every_s)
            activity = activity_of(self._consumer)
            pending = await self._report(database, activity, idle.check(activity, time.monotonic()))
            if (pending or not activity.connected) and not await asyncio.to_thread(self._broker_answers):
                idle.seconds = 0.0  # not the worker's fault; the time counts from when the broker is back
            elif pending and not self._stopping():
                await self._record_stall(database)
                self._end_worker(pending, idle.seconds, activity)
        await database.close()

    async def _report(self, database: Database, activity: Activity, idle_s: float) -> UUID | None:
        """Record this check in the database; if the worker has been idle for too long, return a turn that is pending."""
        try:
            async with asyncio.timeout(_QUERY_S):
                age_s = time.monotonic() - self._began
                await workers.seen(database, self._name, os.getpid(), age_s=age_s, idle_s=idle_s, running=activity.active)
                allowed_s = self._limit_s if activity.connected else self._limit_s + RECONNECT_PAUSE_S
                stuck = await stuck_turns.open_turns(database, 1, self._limit_s, runnable=True) if idle_s >= allowed_s else []
        except Exception as error:  # noqa: BLE001 - a database that does not answer is not the worker's fault
            log.info("The watchdog could not query the database: %s", type(error).__name__)
            return None
        return stuck[0]["id"] if stuck else None

    async def _record_stall(self, database: Database) -> None:
        try:
            async with asyncio.timeout(_QUERY_S):
                await workers.stalled(database, self._name)
        except Exception as error:  # noqa: BLE001 - the log says it, too
            log.info("The watchdog could not record the stall: %s", type(error).__name__)

    def _stopping(self) -> bool:
        return self._stopped.is_set() or self._consumer.controller.blueprint.state != RUN

    def _broker_answers(self) -> bool:
        try:
            with self._consumer.app.connection_for_read() as connection:
                connection.ensure_connection(max_retries=1, interval_start=0, timeout=5)
        except Exception as error:  # noqa: BLE001 - every transport has errors of its own
            log.info("The watchdog could not reach the broker: %s", type(error).__name__)
            return False
        return True

    def _end_worker(self, pending: UUID, idle_s: float, activity: Activity) -> None:
        log.critical(
            "No progress for %.0f s while turns are pending; exiting so that the supervisor restarts this worker",
            idle_s,
            extra={
                "exit_status": EXIT_CODE,
                "pending_turn": str(pending),
                "loop_lag_s": round(activity.lag_s, 1),
                "tasks_active": activity.active,
                "tasks_reserved": activity.reserved,
            },
        )
        vars(state)["should_stop"] = EXIT_CODE  # an orderly stop, if the consumer still runs
        time.sleep(CLEAN_STOP_S)
        _flush_logs()
        os._exit(EXIT_CODE)


def _flush_logs() -> None:
    for handler in logging.getLogger().handlers:
        handler.flush()


_watchdog: Watchdog | None = None


@signals.worker_ready.connect
def _start(sender: Any, **_: object) -> None:
    """Start the watchdog once. Celery sends this signal after every reconnect."""
    global _watchdog
    settings = get_settings()
    if not settings.watchdog_s:
        log.warning("The watchdog is off (TURNLINE_WATCHDOG_S is 0): nothing restarts this worker if it hangs")
    elif _watchdog is None:
        _watchdog = Watchdog(sender, settings)
        _watchdog.start()


@signals.worker_shutting_down.connect
def _stop(**_: object) -> None:
    if _watchdog is not None:
        _watchdog.stop()
