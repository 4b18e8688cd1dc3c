"""Model vendors, one module each, all answering the same question: a `ModelRequest` in, a `ModelReply` out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from engine.errors import Rejected
from engine.events import ModelReply
from engine.turn.context import ModelRequest
from integrations.http import HttpClients
from integrations.providers.openai.client import OpenAI

OnDelta = Callable[[str], None]


class Provider(Protocol):
    """A model vendor."""

    async def complete(self, request: ModelRequest, *, on_delta: OnDelta | None = None, deadline_s: float) -> ModelReply:
        """Return the model's whole reply. `on_delta` is given its text as it comes; `deadline_s` is wall-clock time for all of it.

        Raises:
            TurnlineError: anything of the tree but LeaseLost.
        """


_PROVIDERS: dict[str, Callable[[HttpClients], Provider]] = {"openai": OpenAI}


def known(name: str) -> bool:
    """Whether there is a vendor that agents may call `name`."""
    return name in _PROVIDERS


def provider_for(name: str, outside: HttpClients) -> Provider:
    """Return the vendor that agents call `name`.

    Raises:
        Rejected: there is none of that name.
    """
    make = _PROVIDERS.get(name)
    if make is None:
        raise Rejected(f"There is no model provider {name!r} here; there are: {', '.join(sorted(_PROVIDERS))}.")
    return make(outside)
