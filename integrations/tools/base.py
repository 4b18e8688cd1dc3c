"""The interface of a tool integration."""

from __future__ import annotations

from typing import Any, Protocol

from engine.errors import Rejected
from engine.events import ToolOutcome
from engine.tools.spec import IntegrationSpec, ToolSpec
from integrations.http import RequestCounter


class Refused(Rejected):
    """The call was refused by our own checks or by the server. The message is a sentence that the model can act on."""


class Integration(Protocol):
    """A way to execute tool calls.

    `call` and `status` send one request each; `integrations.tools.retries` decides what to do about an error, because that depends
    on the tool's effect.
    """

    async def call(
        self,
        tool: ToolSpec,
        spec: IntegrationSpec,
        arguments: dict[str, Any],
        *,
        idempotency_key: str,
        deadline_s: float,
        counter: RequestCounter,
    ) -> ToolOutcome:
        """Execute the call and return its result, or `failed` if it was executed but its result cannot be used.

        Raises:
            Refused: our own check or the server refused the call.
            TurnlineError: there was no usable answer; `maybe_done` says whether the call may have been executed.
        """

    async def status(
        self, tool: ToolSpec, spec: IntegrationSpec, arguments: dict[str, Any], *, idempotency_key: str, deadline_s: float
    ) -> ToolOutcome | None:
        """Return the outcome of the call with this key, or None if it was not executed. Only for queryable tools.

        Raises:
            TurnlineError: the status is not known.
        """

    async def probe(self, spec: IntegrationSpec, *, deadline_s: float) -> None:
        """Check that the integration is reachable, without side effects. Return at once if this type cannot be probed.

        Raises:
            TurnlineError: it is not reachable, or reports that it is unhealthy.
        """
