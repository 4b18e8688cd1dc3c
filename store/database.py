"""Connections to Postgres: one pool per role and process, used in two ways.

`Database.transaction(workspace)` opens a SQLAlchemy transaction, for statements that are not run by every turn. `Database.call(sql, …)`
runs one statement, such as a function of `store/sql`, as one round trip in its own transaction.
Both act as the role of the `Database`, never as the login, so that row-level security applies.
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
    """Return `value` as JSON in the form that is stored: strict (without NaN and Infinity) and compact."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))


set_json_dumps(dumps)


def _options(role: str) -> str:
    """Return connection options: act as `role`, and limit statements, lock waits and idle transactions."""
    return (
        f"-c role={role} -c timezone=UTC -c statement_timeout=10s -c lock_timeout=5s -c idle_in_transaction_session_timeout=15s -c jit=off"
    )


# A server or network that stops responding is detected within about 20 s.
_NETWORK: Mapping[str, Any] = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}


def connect_arguments(role: str, application_name: str) -> dict[str, Any]:
    """Return arguments for psycopg's connect: act as `role`, with short waits.

    A pooler in transaction mode (TURNLINE_DB_POOLER) does not pass options on, so the login's own defaults must set them
    (docs/scaling.md). It may also give each transaction another connection, so statements are not prepared.
    """
    if get_settings().db_pooler:
        return {**_NETWORK, "application_name": application_name, "prepare_threshold": None}
    return {**_NETWORK, "options": _options(role), "application_name": application_name}


class Database:
    """One role's connections to Postgres, for one event loop. Call `await open()` first and `await close()` last."""

    def __init__(
        self, url: str, *, role: str = APP_ROLE, pool_size: int = 20, application_name: str = "turnline", wait_s: float = 10
    ) -> None:
        """Make the pools. After `wait_s` without a free connection a caller gets psycopg's PoolTimeout or SQLAlchemy's TimeoutError."""
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
        """Start the pool without waiting for the server: a worker may start before its database."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.close(timeout=5)
        await self._engine.dispose()

    @asynccontextmanager
    async def transaction(self, workspace_id: UUID | None = None) -> AsyncIterator[AsyncConnection]:
        """Open a transaction that sees the rows of `workspace_id`, or of no workspace if it is None. It rolls back on an error."""
        async with self._engine.begin() as db:
            if workspace_id is not None:
                await db.execute(text("SELECT set_config('app.workspace_id', :id, true)"), {"id": str(workspace_id)})
            yield db

    async def call(self, statement: str, *parameters: object, share: UUID | None = None) -> dict[str, Any]:
        """Run `statement` with `parameters` ($1, $2 …) in its own transaction, in one round trip, and return its one row.

        `share` is the workspace that the statement is for, if known: a workspace with few running statements does not wait behind one
        with many (`store.fair_semaphore`). Raises psycopg.Error; if the connection broke, the statement may have been committed.
        """
        async with self._connection(statement, share) as connection:
            row = await (await connection.execute(statement, parameters)).fetchone()
        if row is None:
            raise LookupError("the statement returned no row")
        return row

    async def rows(self, statement: str, *parameters: object) -> list[dict[str, Any]]:
        """Run `statement` as `call` does, and return all its rows."""
        async with self._connection(statement) as connection:
            return await (await connection.execute(statement, parameters)).fetchall()

    @asynccontextmanager
    async def _connection(self, statement: str, share: UUID | None = None) -> AsyncIterator[PsycopgConnection[dict[str, Any]]]:
        async with AsyncExitStack() as stack:
            try:
                slot = self._shares.taken(share or statement, wait_s=self._pool.timeout, counts=share is not None)
                await stack.enter_async_context(slot)
            except TimeoutError:
                raise PoolTimeout(f"no connection was free within {self._pool.timeout:g} s") from None
            yield await stack.enter_async_context(self._pool.connection())

    async def ping(self) -> None:
        """Raise psycopg.Error or PoolTimeout unless the database answers."""
        await self.rows("SELECT 1 AS one")
