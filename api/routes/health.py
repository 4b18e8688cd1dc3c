"""Whether the process lives, and whether work can be done. Open to everybody, so they say little."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Awaitable, Callable

import psycopg.errors
from celery import Celery
from fastapi import APIRouter, Request, Response

from api.errors import Problem, respond
from api.openapi import problem
from api.responses import Json
from api.schemas import responses
from store import migrate
from store.database import Database

log = logging.getLogger(__name__)

PATIENCE_S = 3.0
REMEMBER_S = 1.0
OK = "ok"
NOT_MIGRATED = "the schema is not at the newest revision; run turnline migrate"
_FRESH = {"Cache-Control": "no-store"}

routes = APIRouter(tags=["health"])


class Readiness:
    """Looks at the database, its schema and the broker; asked by many, it looks once a second."""

    def __init__(self, database: Database, celery: Celery) -> None:
        self._database, self._celery = database, celery
        self._broker = Aside(self._connect)
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
        try:
            rows = await self._database.rows("SELECT version_num FROM alembic_version")
        except psycopg.errors.UndefinedTable:
            return NOT_MIGRATED
        return OK if [row["version_num"] for row in rows] == [self._head] else NOT_MIGRATED

    async def _look_at_broker(self) -> str:
        await self._broker()
        return OK

    def _connect(self) -> None:
        with self._celery.connection_for_write(connect_timeout=2) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0.1, timeout=PATIENCE_S - 1)


class Aside:
    """Runs `look`, which blocks, beside the loop, once at a time.

    In a daemon thread and not in the loop's own: a look that hangs uses up no other work's thread, and nothing waits for it at the stop.
    """

    def __init__(self, look: Callable[[], None]) -> None:
        self._look = look
        self._ending: asyncio.Future[Exception | None] | None = None

    async def __call__(self) -> None:
        """Return once a look has ended well; raises what it raised. A look that is still under way is waited for, not repeated."""
        if self._ending is None:
            loop = asyncio.get_running_loop()
            self._ending = loop.create_future()
            threading.Thread(target=self._run, args=(loop, self._ending), name="readiness", daemon=True).start()
        error = await asyncio.shield(self._ending)
        if error is not None:
            raise error

    def _run(self, loop: asyncio.AbstractEventLoop, ending: asyncio.Future[Exception | None]) -> None:
        try:
            self._look()
        except Exception as error:  # noqa: BLE001 - it is raised where it is waited for
            outcome: Exception | None = error
        else:
            outcome = None
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(self._ended, ending, outcome)

    def _ended(self, ending: asyncio.Future[Exception | None], outcome: Exception | None) -> None:
        self._ending = None
        ending.set_result(outcome)


async def _within(look: Callable[[], Awaitable[str]], otherwise: str) -> str:
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await look()
    except Exception as error:  # noqa: BLE001 - each driver has errors of its own; whichever it is, the part is not ready
        log.warning("%s: %s", otherwise, type(error).__name__)
        return otherwise


@routes.get("/healthz", response_model=responses.Health)
async def healthz() -> Response:
    """The process answers."""
    return Json({"status": "ok"}, headers=_FRESH)


@routes.get("/readyz", response_model=responses.Readiness, responses={503: problem("Something is not ready; `checks` says what.")})
async def readyz(request: Request) -> Response:
    """Whether the database answers with its schema at the newest revision, and the broker answers."""
    readiness: Readiness = request.app.state.readiness
    checks = await readiness.look()
    wrong = [(part, found) for part, found in checks.items() if found != OK]
    if not wrong:
        return Json({"status": "ready", "checks": checks}, headers=_FRESH)
    detail = f"Not ready: {'; '.join(found for _, found in wrong)}."
    return respond(request.scope, Problem(503, detail, errors=wrong, headers=_FRESH, members={"checks": checks}))
