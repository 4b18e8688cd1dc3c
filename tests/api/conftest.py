"""Fixtures: the API served by uvicorn on a real socket with a real Postgres and Valkey, and tenants that call it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.api_server import SECRET_KEY, Service, Tenant, serving
from tests.support.servers import EmbeddedValkey


@pytest.fixture(scope="module")
def service(database_url: str, valkey: EmbeddedValkey) -> Iterator[Service]:
    """Serve the API for this module in a thread of this process."""
    with serving(DATABASE_URL=database_url, CELERY_BROKER_URL=valkey.url, secret_keys=SECRET_KEY) as made:
        yield made


@pytest.fixture
def acme(service: Service) -> Iterator[Tenant]:
    """Return a new workspace, with a client that uses its admin key."""
    with service.tenant("Acme") as made:
        yield made


@pytest.fixture
def other(service: Service) -> Iterator[Tenant]:
    """Return another new workspace."""
    with service.tenant("Other") as made:
        yield made
