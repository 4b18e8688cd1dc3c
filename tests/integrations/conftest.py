"""Settings and clients for tests that talk to real sockets on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from integrations.http import HttpClients
from settings import Settings
from tests.support.tool_calls import MakeOutside


@pytest.fixture
async def outside() -> AsyncIterator[MakeOutside]:
    """Makes an `HttpClients` of given settings; loopback is allowed to tools unless the settings say otherwise."""
    made: list[HttpClients] = []

    def make(**values: object) -> HttpClients:
        made.append(HttpClients(Settings.model_validate({"allowed_networks": "127.0.0.0/8", **values})))
        return made[-1]

    yield make
    for one in made:
        await one.aclose()
