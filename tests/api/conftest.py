"""The API served by uvicorn on a real socket, on a real Postgres and a real Valkey; and tenants who call it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.api_server import SECRET_KEY, Service, Tenant, serving
from tests.support.servers import EmbeddedValkey


@pytest.fixture(scope="module")
def service(database_url: str, valkey: EmbeddedValkey) -> Iterator[Service]:
    """A server for this module, in a thread of this process."""
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
