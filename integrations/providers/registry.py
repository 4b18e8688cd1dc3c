"""The model providers that agents may name."""

from __future__ import annotations

from collections.abc import Callable

from engine.enums import ModelProvider
from engine.errors import Rejected
from integrations.http import HttpClients
from integrations.providers.base import Provider
from integrations.providers.openai.client import OpenAI

_PROVIDERS: dict[str, Callable[[HttpClients], Provider]] = {
    ModelProvider.OPENAI: OpenAI,
}


def is_known(name: str) -> bool:
    """Return True if there is a provider called `name`."""
    return name in _PROVIDERS


def provider_for(name: str, http_clients: HttpClients) -> Provider:
    """Return the provider called `name`.

    Raises:
        Rejected: no provider has this name.
    """
    make = _PROVIDERS.get(name)
    if make is None:
        raise Rejected(f"There is no model provider {name!r} here; there are: {', '.join(sorted(_PROVIDERS))}.")
    return make(http_clients)
