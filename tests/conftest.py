"""Fixtures for every test that needs a server. Under pytest-xdist each worker process has its own two servers."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from cli.standalone.unprivileged import scratch_directory
from tests.support.servers import Databases, EmbeddedPostgres, EmbeddedValkey

# A shell starts what runs in its background with SIGINT ignored, and so would be every process of ours that is to be interrupted.
signal.signal(signal.SIGINT, signal.default_int_handler)


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
def empty_database_url(databases: Databases) -> Iterator[str]:
    """A database of this test with nothing in it."""
    url = databases.empty()
    yield url
    databases.drop(url)


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
