"""Readiness: whether the database, its schema and the broker can be used."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Awaitable, Callable

import psycopg.errors
from celery import Celery

from store import migrate
from store.database import Database

log = logging.getLogger(__name__)

CHECK_TIMEOUT_S = 3.0
CACHE_S = 1.0
OK = "ok"
NOT_MIGRATED = "the schema is not at the newest revision; run turnline migrate"


class Readiness:
    """Checks the database, its schema and the broker, at most once a second however many requests ask."""

    def __init__(self, database: Database, celery: Celery) -> None:
        self._database, self._celery = database, celery
        self._broker = DaemonCheck(self._connect)
        self._newest_revision: str | None = None
        self._checks: dict[str, str] = {}
        self._valid_until = 0.0
        self._lock = asyncio.Lock()

    async def check(self) -> dict[str, str]:
        """Return `ok` or a reason for each of `database` and `broker`."""
        async with self._lock:
            if time.monotonic() > self._valid_until:
                database, broker = await asyncio.gather(
                    _checked(self._check_database, "the database does not answer"),
                    _checked(self._check_broker, "the broker does not answer"),
                )
                self._checks = {"database": database, "broker": broker}
                self._valid_until = time.monotonic() + CACHE_S
            return self._checks

    async def _check_database(self) -> str:
        if self._newest_revision is None:
            self._newest_revision = await asyncio.to_thread(migrate.head)
        try:
            rows = await self._database.rows("SELECT version_num FROM alembic_version")
        except psycopg.errors.UndefinedTable:
            return NOT_MIGRATED
        return OK if [row["version_num"] for row in rows] == [self._newest_revision] else NOT_MIGRATED

    async def _check_broker(self) -> str:
        await self._broker()
        return OK

    def _connect(self) -> None:
        with self._celery.connection_for_write(connect_timeout=2) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0.1, timeout=CHECK_TIMEOUT_S - 1)


class DaemonCheck:
    """Runs a blocking check in a daemon thread, one at a time.

    The event loop's own threads are not used: a check that hangs would occupy one of them, and a shutdown would wait for it.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check
        self._running: asyncio.Future[Exception | None] | None = None

    async def __call__(self) -> None:
        """Return once a check has succeeded; raise what it raised. A check that is still running is joined and not repeated."""
        if self._running is None:
            loop = asyncio.get_running_loop()
            self._running = loop.create_future()
            threading.Thread(target=self._run, args=(loop, self._running), name="readiness", daemon=True).start()
        error = await asyncio.shield(self._running)
        if error is not None:
            raise error

    def _run(self, loop: asyncio.AbstractEventLoop, result: asyncio.Future[Exception | None]) -> None:
        try:
            self._check()
        except Exception as error:  # noqa: BLE001 - raised again in __call__
            outcome: Exception | None = error
        else:
            outcome = None
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            loop.call_soon_threadsafe(self._finish, result, outcome)

    def _finish(self, result: asyncio.Future[Exception | None], outcome: Exception | None) -> None:
        self._running = None
        result.set_result(outcome)


async def _checked(check: Callable[[], Awaitable[str]], failure: str) -> str:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            return await check()
    except Exception as error:  # noqa: BLE001 - each driver has its own errors, and any of them means not ready
        log.warning("Not ready, %s: %s", failure, type(error).__name__)
        return failure
