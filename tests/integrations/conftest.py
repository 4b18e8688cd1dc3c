"""HTTP clients for tests that use real sockets on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from integrations.executor import Performer
from integrations.http import HttpClients
from settings import Settings
from tests.support.http_clients import MakeHttpClients


@pytest.fixture
async def make_clients() -> AsyncIterator[MakeHttpClients]:
    """Return a function that makes an `HttpClients` from settings. Tools may reach loopback unless the settings say otherwise."""
    made: list[HttpClients] = []

    def make(**values: object) -> HttpClients:
        made.append(HttpClients(Settings.model_validate({"allowed_networks": "127.0.0.0/8", **values})))
        return made[-1]

    yield make
    for clients in made:
        await clients.aclose()


@pytest.fixture
def performer(make_clients: MakeHttpClients) -> Performer:
    """Return a performer that may reach loopback."""
    clients = make_clients()
    return Performer(clients.settings, clients)
