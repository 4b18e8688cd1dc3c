"""What tools are mapped to, one module for each `integration_type`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from engine.events import ToolOutcome
from engine.turn.context import IntegrationSpec, ToolSpec
from integrations.http import HttpClients, RequestCounter
from integrations.tools.http.client import HttpTool


class Integration(Protocol):
    """A way to carry a tool call out. Each method sends one request: what to do about an error depends on the tool's effect."""

    async def call(
        self,
        tool: ToolSpec,
        integration: IntegrationSpec,
        arguments: dict[str, Any],
        *,
        idempotency_key: str,
        deadline_s: float,
        counter: RequestCounter,
    ) -> ToolOutcome:
        """Return what came of a call that was carried out: its result, or `failed` where the result is of no use.

        Raises:
            Refused: our own check or the other side's answer; a sentence for the model.
            TurnlineError: it did not get as far as an answer; `maybe_done` says whether it may have happened.
        """

    async def status(
        self, tool: ToolSpec, integration: IntegrationSpec, arguments: dict[str, Any], *, idempotency_key: str, deadline_s: float
    ) -> ToolOutcome | None:
        """Return what came of the call under this key, as `call` would have; None where it did not happen. Queryable tools only.

        Raises:
            TurnlineError: nobody could say.
        """


_INTEGRATIONS: dict[str, Callable[[HttpClients], Integration]] = {"custom_tool": HttpTool}


def integration_for(integration_type: str, outside: HttpClients) -> Integration | None:
    """Return what carries out calls of `integration_type`, or None where nothing here does."""
    make = _INTEGRATIONS.get(integration_type)
    return make(outside) if make is not None else None
