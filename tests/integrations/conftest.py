"""Settings and clients for tests that talk to real sockets on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from integrations.http import Outside
from settings import Settings

MakeOutside = Callable[..., Outside]


@pytest.fixture
async def outside() -> AsyncIterator[MakeOutside]:
    """Makes an `Outside` of given settings; loopback is allowed to tools unless the settings say otherwise."""
    made: list[Outside] = []

    def make(**values: object) -> Outside:
        made.append(Outside(Settings.model_validate({"allowed_networks": "127.0.0.0/8", **values})))
        return made[-1]

    yield make
    for one in made:
        await one.aclose()
