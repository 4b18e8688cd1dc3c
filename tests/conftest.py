"""Fixtures for every test that needs a server. Under pytest-xdist each worker process has its own two servers."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis

from cli.standalone.unprivileged import scratch_directory
from store.database import MAINTENANCE_ROLE, Database
from tests.support.db import opened
from tests.support.servers import SECRET_KEY, Databases, EmbeddedPostgres, EmbeddedValkey

if TYPE_CHECKING:
    from tests.support.api_server import Service, Tenant

# A shell starts what runs in its background with SIGINT ignored, and so would be every process of ours that is to be interrupted.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Directories of tests that run without a server: what `make test-fast` runs.
SERVERLESS = {"engine", "integrations", "sandbox", "support"}
SERVERS = {"postgres", "valkey"}

# pytest-xdist hands out whole files in this order: those that take longest first, so that no worker is left alone with one at the end.
LONGEST_FIRST = ("system/pipeline/test_chaos.py", "system/machine", "system/faults", "system/crashes", "system", "deploy", "cli", "worker")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort tests by how long their files take, without changing the order inside a file."""
    items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    path = item.path.relative_to(Path(__file__).parent)
    places = (rank for rank, prefix in enumerate(LONGEST_FIRST) if path.is_relative_to(prefix))
    return next(places, len(LONGEST_FIRST))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a test of the fast tier that uses a server, also when the whole suite runs."""
    directory = item.path.relative_to(Path(__file__).parent).parts[0]
    used = SERVERS & set(getattr(item, "fixturenames", ()))
    if directory in SERVERLESS and used:
        pytest.fail(f"tests/{directory} must run without servers, and this test uses {', '.join(sorted(used))}", pytrace=False)


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """A directory for this pytest process that servers running as another user can reach."""
    with scratch_directory("turnline-tests-") as directory:
        yield directory


@pytest.fixture(scope="session")
def postgres(scratch: Path) -> Iterator[EmbeddedPostgres]:
    """A running Postgres. Its roles are the server's: tests that drop roles start their own."""
    with EmbeddedPostgres(scratch / "postgres", fast=True) as server:
        yield server


@pytest.fixture(scope="session")
def databases(postgres: EmbeddedPostgres) -> Databases:
    """Makes empty and migrated databases: `databases.migrated()` is a fresh one at once."""
    return Databases(postgres)


@pytest.fixture(scope="module")
def database_url(databases: Databases) -> Iterator[str]:
    """A migrated database of this test module, as the server's superuser."""
    url = databases.migrated()
    yield url
    databases.drop(url)


@pytest.fixture
def fresh_database_url(databases: Databases) -> Iterator[str]:
    """A migrated database of this test, as the server's superuser.

    A module whose tests cannot share a database overrides `database_url` with it.
    """
    url = databases.migrated()
    yield url
    databases.drop(url)


@pytest.fixture
def empty_database_url(databases: Databases) -> Iterator[str]:
    """A database of this test with nothing in it."""
    url = databases.empty()
    yield url
    databases.drop(url)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """Connections of the application's role to `database_url`."""
    async with opened(database_url, pool_size=10) as made:
        yield made


@pytest.fixture
async def maintenance(database_url: str) -> AsyncIterator[Database]:
    """Connections of the maintenance role to `database_url`."""
    async with opened(database_url, MAINTENANCE_ROLE) as made:
        yield made


@pytest.fixture(scope="session")
def valkey() -> Iterator[EmbeddedValkey]:
    """A running Valkey that keeps nothing."""
    with EmbeddedValkey(None) as server:
        yield server


@pytest.fixture
def broker_url(valkey: EmbeddedValkey) -> str:
    """An empty Valkey database, emptied again for each test."""
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    return valkey.url


@pytest.fixture(scope="module")
def service(database_url: str, valkey: EmbeddedValkey) -> Iterator[Service]:
    """The API, served by uvicorn in a thread of this process, on a real socket, Postgres and Valkey."""
    from tests.support.api_server import serving  # FastAPI takes a second to load, and few tests need it

    with serving(DATABASE_URL=database_url, CELERY_BROKER_URL=valkey.url, secret_keys=SECRET_KEY) as made:
        yield made


@pytest.fixture
def acme(service: Service) -> Iterator[Tenant]:
    """A new workspace, called with its admin's key."""
    with service.tenant("Acme") as made:
        yield made


@pytest.fixture
def other(service: Service) -> Iterator[Tenant]:
    """Another new workspace."""
    with service.tenant("Other") as made:
        yield made
