"""SQL for tests: as the server's superuser, who sees every tenant, or as the application's or the maintenance role."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from sqlalchemy import text

from store.database import APP_ROLE, Database
from tests.support.factories import Tenant


def fetch(url: str, query: str, *parameters: object) -> list[tuple[Any, ...]]:
    """Run one statement as the superuser and return its rows; none if it returns no rows."""
    with psycopg.connect(url, autocommit=True) as db:
        cursor = db.execute(query, parameters)
        return cursor.fetchall() if cursor.description else []


def fetch_value(url: str, query: str, *parameters: object) -> Any:
    """Return the first column of the query's first row, or None if it has no row."""
    found = fetch(url, query, *parameters)
    return found[0][0] if found else None


async def rows(database: Database, tenant: Tenant, query: str, **values: Any) -> Sequence[Any]:
    """Run one statement with `:name` parameters, restricted to the tenant's rows, and return its rows (tuples with attributes)."""
    async with database.transaction(tenant.workspace_id) as db:
        return (await db.execute(text(query), values)).all()


@asynccontextmanager
async def opened(url: str, role: str = APP_ROLE, *, pool_size: int = 2) -> AsyncIterator[Database]:
    """Connect to the database at `url` as one of the product's roles."""
    database = Database(url, role=role, pool_size=pool_size)
    await database.open()
    try:
        yield database
    finally:
        await database.close()
