"""Connections: one pool of them per role and process, and the two ways to use one.

`Database.transaction(workspace)` opens a SQLAlchemy transaction for the colder questions and changes; `Database.call(sql, …)` sends one
of the statements that every turn runs (see `store/sql`) as one round trip on its own transaction.
Both act as the role the `Database` was made for, never as the login: row-level security applies.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import UUID

import psycopg
import sqlalchemy.exc
from psycopg import AsyncConnection as PsycopgConnection
from psycopg import AsyncRawCursor
from psycopg.rows import dict_row
from psycopg.types.json import set_json_dumps
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout, TooManyRequests
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from settings import get_settings
from store.fair_semaphore import FairSemaphore

APP_ROLE = "turnline_app"
MAINTENANCE_ROLE = "turnline_maintenance"

# What a query raises if the database cannot be used at the moment.
UNAVAILABLE: tuple[type[Exception], ...] = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    PoolTimeout,
    PoolClosed,
    TooManyRequests,
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.InterfaceError,
    sqlalchemy.exc.TimeoutError,
)


def dumps(value: object) -> str:
    """JSON as it is stored: strict (no NaN or Infinity), compact."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))


set_json_dumps(dumps)


def _options(role: str) -> str:
    """Connection options: act as `role`; no statement, lock wait or idle transaction holds a connection for long."""
    return (
        f"-c role={role} -c timezone=UTC -c statement_timeout=10s -c lock_timeout=5s -c idle_in_transaction_session_timeout=15s -c jit=off"
    )


# A server or network that has gone silent is noticed within about 20 s.
_NETWORK: Mapping[str, Any] = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}


def connect_arguments(role: str, application_name: str) -> dict[str, Any]:
    """Arguments for psycopg's connect: acting as `role`, with short waits.

    Where a pooler in transaction mode is between (TURNLINE_DB_POOLER), it passes no options on: the login's own defaults stand for
    them (docs/scaling.md). And it may give each transaction another connection, on which nothing has been prepared.
    """
    if get_settings().db_pooler:
        return {**_NETWORK, "application_name": application_name, "prepare_threshold": None}
    return {**_NETWORK, "options": _options(role), "application_name": application_name}


class Database:
    """One role's connections to Postgres, for one event loop. `await open()` first, `await close()` last."""

    def __init__(
        self, url: str, *, role: str = APP_ROLE, pool_size: int = 20, application_name: str = "turnline", wait_s: float = 10
    ) -> None:
        """`wait_s`: how long a caller waits for a free connection before it gets psycopg's PoolTimeout or SQLAlchemy's TimeoutError."""
        arguments = connect_arguments(role, application_name)
        self._pool: AsyncConnectionPool[PsycopgConnection[dict[str, Any]]] = AsyncConnectionPool(
            url,
            kwargs={"prepare_threshold": 1} | arguments | {"autocommit": True, "row_factory": dict_row, "cursor_factory": AsyncRawCursor},
            min_size=1,
            max_size=pool_size,
            timeout=wait_s,
            max_idle=300,
            open=False,
        )
        self._shares = FairSemaphore(pool_size)
        self._engine: AsyncEngine = create_async_engine(
            url.replace("postgresql://", "postgresql+psycopg://", 1),
            connect_args=arguments,
            json_serializer=dumps,
            poolclass=AsyncAdaptedQueuePool,
            pool_size=min(pool_size, 5),
            max_overflow=max(0, pool_size - 5),
            pool_timeout=wait_s,
            pool_pre_ping=True,
        )

    async def open(self) -> None:
        """Start the pool. Does not wait for the server: a worker may start before its database."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """Give every connection back to the server."""
        await self._pool.close(timeout=5)
        await self._engine.dispose()

    @asynccontextmanager
    async def transaction(self, workspace_id: UUID | None = None) -> AsyncIterator[AsyncConnection]:
        """A transaction that sees the rows of `workspace_id`, or of no tenant where it is None; commits on leaving, rolls back on error."""
        async with self._engine.begin() as db:
            if workspace_id is not None:
                await db.execute(text("SELECT set_config('app.workspace_id', :id, true)"), {"id": str(workspace_id)})
            yield db

    async def call(self, statement: str, *parameters: object, share: UUID | None = None) -> dict[str, Any]:
        """The one row that `statement` returns ($1, $2 … in it are `parameters`), in a transaction of its own, in one round trip.

        `share`: the workspace that it is for, where that is known: one that has few statements under way does not wait behind another's
        many (`store.fair_semaphore`). Raises psycopg.Error; where the connection broke, nobody knows whether it was committed.
        """
        async with self._connection(statement, share) as connection:
            row = await (await connection.execute(statement, parameters)).fetchone()
        if row is None:
            raise LookupError("the statement returned no row")
        return row

    async def rows(self, statement: str, *parameters: object) -> list[dict[str, Any]]:
        """All rows that `statement` returns; otherwise as `call`."""
        async with self._connection(statement) as connection:
            return await (await connection.execute(statement, parameters)).fetchall()

    @asynccontextmanager
    async def _connection(self, statement: str, share: UUID | None = None) -> AsyncIterator[PsycopgConnection[dict[str, Any]]]:
        async with AsyncExitStack() as held:
            try:
                place = self._shares.taken(share or statement, wait_s=self._pool.timeout, counts=share is not None)
                await held.enter_async_context(place)
            except TimeoutError:
                raise PoolTimeout(f"no connection was free within {self._pool.timeout:g} s") from None
            yield await held.enter_async_context(self._pool.connection())

    async def ping(self) -> None:
        """Raises psycopg.Error or PoolTimeout where the database does not answer."""
        await self.rows("SELECT 1 AS one")
