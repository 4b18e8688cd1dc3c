"""Whether the process lives, and whether work can be done. Open to everybody, so they say little."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from celery import Celery
from fastapi import APIRouter, Request, Response

from api import answers
from api.wire import Json
from store import migrate
from store.database import Database

log = logging.getLogger(__name__)

PATIENCE_S = 3.0
REMEMBER_S = 1.0
routes = APIRouter(tags=["health"])


class Readiness:
    """Looks at the database, its schema and the broker; asked by many, it looks once a second."""

    def __init__(self, database: Database, celery: Celery) -> None:
        self._database, self._celery = database, celery
        self._head: str | None = None
        self._found: dict[str, str] = {}
        self._good_until = 0.0
        self._lock = asyncio.Lock()

    async def look(self) -> dict[str, str]:
        """Each part's name with `ok`, or what is the matter with it."""
        async with self._lock:
            if time.monotonic() > self._good_until:
                database, broker = await asyncio.gather(
                    _within(self._look_at_database, "the database does not answer"),
                    _within(self._look_at_broker, "the broker does not answer"),
                )
                self._found = {"database": database, "broker": broker}
                self._good_until = time.monotonic() + REMEMBER_S
            return self._found

    async def _look_at_database(self) -> str:
        if self._head is None:
            self._head = await asyncio.to_thread(migrate.head)
        rows = await self._database.rows("SELECT version_num FROM alembic_version")
        if [row["version_num"] for row in rows] != [self._head]:
            return "the schema is not at the newest revision; run turnline migrate"
        return "ok"

    async def _look_at_broker(self) -> str:
        await asyncio.to_thread(self._connect)
        return "ok"

    def _connect(self) -> None:
        with self._celery.connection_for_write(connect_timeout=2) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0.1, timeout=PATIENCE_S - 1)


async def _within(look: Callable[[], Awaitable[str]], otherwise: str) -> str:
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await look()
    except Exception as error:  # noqa: BLE001 - each driver has errors of its own; whichever it is, the part is not ready
        log.warning("%s: %s", otherwise, type(error).__name__)
        return otherwise


@routes.get("/healthz", response_model=answers.Health)
async def healthz() -> Response:
    """The process answers."""
    return Json({"status": "ok"})


@routes.get("/readyz", response_model=answers.Readiness, responses={503: {"model": answers.Readiness, "description": "Something is not."}})
async def readyz(request: Request) -> Response:
    """Whether the database answers with its schema at the newest revision, and the broker answers."""
    readiness: Readiness = request.app.state.readiness
    checks = await readiness.look()
    ready = all(found == "ok" for found in checks.values())
    return Json({"status": "ready" if ready else "not_ready", "checks": checks}, 200 if ready else 503)
