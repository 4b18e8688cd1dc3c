"""Execute what the engine decided: call a model provider or a tool, and return the result."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from engine.enums import Effect, ToolStatus
from engine.events import ModelReply, ToolCall, ToolOutcome
from engine.turn.context import ModelRequest, ToolSpec
from failpoints import failpoint
from integrations.http import HttpClients, RequestCounter
from integrations.providers.registry import provider_for
from integrations.tools.registry import integration_for
from integrations.tools.retries import MAX_TRIES, OnResult, ToolCallAttempts
from settings import Settings

OUTCOME_UNKNOWN = "It was started and nobody heard how it ended: it may or may not have happened."


class Performer:
    """Carries out what the engine decided. One per process; close it with `aclose` on the loop that used it."""

    def __init__(self, settings: Settings, outside: HttpClients | None = None) -> None:
        self._outside = outside if outside is not None else HttpClients(settings)

    async def call_model(
        self, request: ModelRequest, on_delta: Callable[[str], None] | None = None, deadline_s: float | None = None
    ) -> ModelReply:
        """Return the reply of one request to `request.model_provider`; `on_delta` is given its text as it comes.

        One request, no retries, because every request has a ledger row of its own. `deadline_s` is wall-clock time
        (default: `settings.model_timeout_s`).

        Raises:
            TurnlineError: `maybe_done` says whether tokens may have been billed.
        """
        provider = provider_for(request.model_provider, self._outside)
        seconds = self._outside.settings.model_timeout_s if deadline_s is None else deadline_s
        failpoint("model_call.before_send")
        reply = await provider.complete(request, on_delta=on_delta, deadline_s=seconds)
        failpoint("model_call.answered")
        return reply

    async def call_tool(
        self,
        tool: ToolSpec | None,
        call: ToolCall,
        idempotency_key: str,
        deadline_s: float | None = None,
        *,
        tool_names: tuple[str, ...] = (),
        begun: bool = False,
        on_result: OnResult | None = None,
    ) -> ToolOutcome:
        """Return what came of `call`; everything but cancellation is an outcome.

        `tool` is None where the agent has none of that name; `tool_names` are those it has. `idempotency_key` is the same for every try
        of this call, whoever makes it. `deadline_s` is wall-clock time for all tries and waits (default: three times
        `settings.tool_timeout_s`). `begun`: a former attempt had started this call, and nobody heard how it ended.
        `on_result` is told of each request whether the integration answered.

        By effect: pure and idempotent calls are tried up to three times. A queryable one that may have happened is asked for its
        status, and sent again only where that says no. An unsafe one is sent again only where nothing had been sent or done.
        """
        began = time.monotonic()
        counter = RequestCounter()
        settings = self._outside.settings
        ends_at = began + (MAX_TRIES * settings.tool_timeout_s if deadline_s is None else deadline_s)
        failpoint("tool_call.before_send")
        if call.arguments is None:  # never sent by anybody
            outcome = _failed("The arguments were not a JSON object; call the tool again with one.")
        elif tool is None:
            outcome = _outcome_unknown() if begun else _no_such_tool(call, tool_names)
        else:
            ways = self._ways(tool, call.arguments, idempotency_key, ends_at, counter, on_result)
            outcome = await (_repeat_call(tool, ways) if begun else _first_call(tool, ways))
        failpoint("tool_call.answered")
        return replace(outcome, latency_ms=round((time.monotonic() - began) * 1000), requests=counter.requests)

    async def aclose(self) -> None:
        """Close every connection of the running loop."""
        await self._outside.aclose()

    def _ways(
        self, tool: ToolSpec, arguments: dict[str, object], key: str, ends_at: float, counter: RequestCounter, on_result: OnResult | None
    ) -> list[ToolCallAttempts]:
        """The tool's integrations, in order, as far as something here can carry them out."""
        known = ((spec, integration_for(spec.integration_type, self._outside)) for spec in tool.integrations)
        return [
            ToolCallAttempts(tool, spec, integration, arguments, key, ends_at, counter, on_result=on_result)
            for spec, integration in known
            if integration is not None
        ]


async def _first_call(tool: ToolSpec, attempts: list[ToolCallAttempts]) -> ToolOutcome:
    """Execute a call that was never sent: at the first integration that can be reached."""
    for attempt in attempts:
        outcome = await attempt.run(has_fallback=attempt is not attempts[-1])
        if outcome is not None:
            return outcome
    return _failed(f"The tool {tool.name!r} is not connected to anything that can execute it.")


async def _repeat_call(tool: ToolSpec, attempts: list[ToolCallAttempts]) -> ToolOutcome:
    """Execute a call that an earlier run of the turn may have sent, at any of the tool's integrations."""
    match tool.effect:
        case Effect.PURE:
            return await _first_call(tool, attempts)
        case Effect.IDEMPOTENT if len(attempts) == 1:
            attempts[0].maybe_done = True
        case Effect.QUERYABLE if attempts:
            found = [outcome for attempt in attempts if (outcome := await attempt.query_status()) is not None]
            if found:
                return next((outcome for outcome in found if outcome.status is not ToolStatus.UNKNOWN), found[0])
        case _:
            # Unsafe; or idempotent with several integrations, of which an unknown one has seen the idempotency key.
            return _outcome_unknown()
    return await _first_call(tool, attempts)


def _no_such_tool(call: ToolCall, tool_names: tuple[str, ...]) -> ToolOutcome:
    available = f"there are: {', '.join(tool_names)}" if tool_names else "this agent has none"
    return _failed(f"There is no tool {call.tool_name[:100]!r}; {available}.")


def _outcome_unknown() -> ToolOutcome:
    return ToolOutcome(ToolStatus.UNKNOWN, error=OUTCOME_UNKNOWN)


def _failed(sentence: str) -> ToolOutcome:
    return ToolOutcome(ToolStatus.FAILED, error=sentence)
