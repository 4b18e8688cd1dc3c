"""The interface of a model provider."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from engine.events import ModelReply
from engine.model.request import ModelRequest

OnDelta = Callable[[str], None]


class Provider(Protocol):
    """A model provider."""

    async def complete(self, request: ModelRequest, *, on_delta: OnDelta | None = None, deadline_s: float) -> ModelReply:
        """Return the model's complete reply.

        `on_delta` receives the text as it streams in. `deadline_s` is wall-clock time for the whole call.

        Raises:
            TurnlineError: any subclass except LeaseLost.
        """
