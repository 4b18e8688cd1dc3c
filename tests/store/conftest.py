"""A migrated database, and connections of the application's role to it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from store.database import MAINTENANCE_ROLE, Database


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    made = Database(database_url, pool_size=10)
    await made.open()
    yield made
    await made.close()


@pytest.fixture
async def maintenance(database_url: str) -> AsyncIterator[Database]:
    made = Database(database_url, role=MAINTENANCE_ROLE, pool_size=2)
    await made.open()
    yield made
    await made.close()
