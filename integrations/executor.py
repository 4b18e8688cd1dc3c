"""Execute what the engine decided: call a model provider or a tool, and return the result."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

from engine.enums import Effect, ToolStatus
from engine.events import ModelReply, ToolCall, ToolOutcome, Usage
from engine.model.request import Bound, Cost, ModelRequest
from engine.model.tokens import bound_tokens, estimated_usage
from engine.sentences import RESULT_LOST
from engine.tools.spec import ToolSpec
from engine.turn.context import TurnContext
from failpoints import failpoint
from integrations.http import HttpClients, RequestCounter
from integrations.price_list import cost_of, max_cost_of
from integrations.providers.registry import provider_for
from integrations.tools.registry import integration_for
from integrations.tools.retries import MAX_TRIES, OnResult, ToolCallAttempts
from settings import Settings

ObserveResults = Callable[[UUID, Collection[UUID]], OnResult]


class Performer:
    """Performs what the engine decides: model calls and tool calls, and what they cost. One per process.

    `observe_results(workspace_id, degraded integrations)` returns a callback that is told of each tool request whether its integration
    answered. Close it with `aclose` on the loop that used it.
    """

    def __init__(self, settings: Settings, clients: HttpClients | None = None, observe_results: ObserveResults | None = None) -> None:
        self._clients = clients if clients is not None else HttpClients(settings)
        self._observe_results = observe_results

    async def call_model(
        self, request: ModelRequest, on_delta: Callable[[str], None] | None = None, deadline_s: float | None = None
    ) -> tuple[ModelReply, Cost]:
        """Send one request to `request.model_provider`; return its reply and what it cost. `on_delta` receives streamed text.

        There are no retries here, because every request has its own ledger row. `deadline_s` is wall-clock time (default:
        `settings.model_timeout_s`).

        Raises:
            TurnlineError: `maybe_done` says whether tokens may have been billed.
        """
        provider = provider_for(request.model_provider, self._clients)
        seconds = self._clients.settings.model_timeout_s if deadline_s is None else deadline_s
        failpoint("model_call.before_send")
        reply = await provider.complete(request, on_delta=on_delta, deadline_s=seconds)
        failpoint("model_call.answered")
        return reply, cost_of(request.model_provider, reply.model, reply.usage, datetime.now(UTC))

    async def call_tool(self, context: TurnContext, call: ToolCall, idempotency_key: str, *, begun: bool) -> ToolOutcome:
        """Make one tool call of a turn; see `use_tool`."""
        tool = context.tool(call.tool_name)
        on_result = None
        if tool is not None and self._observe_results is not None:
            on_result = self._observe_results(context.workspace_id, [spec.id for spec in tool.integrations if spec.degraded])
        tool_names = tuple(known.name for known in context.tools)
        return await self.use_tool(tool, call, idempotency_key, tool_names=tool_names, begun=begun, on_result=on_result)

    def bound(self, request: ModelRequest) -> Bound:
        """Return the most that a model call can use."""
        input_tokens = bound_tokens(request)
        usd = max_cost_of(request.model_provider, request.model_name, input_tokens, request.max_tokens)
        return Bound(input_tokens + request.max_tokens, usd)

    def estimate(self, request: ModelRequest, streamed: str) -> tuple[Usage, Cost]:
        """Return our own count of what a model call used that was cut off after `streamed`."""
        usage = estimated_usage(request, streamed)
        return usage, cost_of(request.model_provider, request.model_name, usage, datetime.now(UTC))

    async def use_tool(
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
        """Return the outcome of `call`. Everything but cancellation is an outcome; no error is raised.

        `tool` is None if the agent has none of that name; `tool_names` are those it has. Every attempt at this call, by any worker,
        sends the same `idempotency_key`. `deadline_s` is wall-clock time for all attempts and waits (default: three times
        `settings.tool_timeout_s`). `begun`: an earlier attempt started this call, and its result is unknown. `on_result` is told of
        each request whether the integration answered.

        By effect: pure and idempotent calls are tried up to three times. For a queryable one that may have happened, the server is
        asked for its status, and the call is sent again only if that says no. An unsafe one is sent again only if nothing was sent
        or done.
        """
        began = time.monotonic()
        counter = RequestCounter()
        settings = self._clients.settings
        ends_at = began + (MAX_TRIES * settings.tool_timeout_s if deadline_s is None else deadline_s)
        failpoint("tool_call.before_send")
        if call.arguments is None:  # no attempt can have sent it
            outcome = _failed("The arguments were not a JSON object; call the tool again with one.")
        elif tool is None:
            outcome = _result_lost() if begun else _no_such_tool(call, tool_names)
        else:
            attempts = self._attempts(tool, call.arguments, idempotency_key, ends_at, counter, on_result)
            outcome = await (_resume(tool, attempts) if begun else _start(tool, attempts))
        failpoint("tool_call.answered")
        return replace(outcome, latency_ms=round((time.monotonic() - began) * 1000), requests=counter.requests)

    async def aclose(self) -> None:
        """Close every connection of the running loop."""
        await self._clients.aclose()

    def _attempts(
        self, tool: ToolSpec, arguments: dict[str, object], key: str, ends_at: float, counter: RequestCounter, on_result: OnResult | None
    ) -> list[ToolCallAttempts]:
        """Return one `ToolCallAttempts` for each of the tool's integrations that is supported here, in order."""
        supported = ((spec, integration_for(spec.integration_type, self._clients)) for spec in tool.integrations)
        return [
            ToolCallAttempts(tool, spec, integration, arguments, key, ends_at, counter, on_result=on_result)
            for spec, integration in supported
            if integration is not None
        ]


async def _start(tool: ToolSpec, attempts: list[ToolCallAttempts]) -> ToolOutcome:
    """Execute a call that was never sent: at the first integration that can be reached."""
    for attempt in attempts:
        outcome = await attempt.run(has_fallback=attempt is not attempts[-1])
        if outcome is not None:
            return outcome
    return _failed(f"The tool {tool.name!r} is not connected to anything that can execute it.")


async def _resume(tool: ToolSpec, attempts: list[ToolCallAttempts]) -> ToolOutcome:
    """Execute a call that an earlier run of the turn may have sent, at any of the tool's integrations."""
    match tool.effect:
        case Effect.PURE:
            return await _start(tool, attempts)
        case Effect.IDEMPOTENT if len(attempts) == 1:
            attempts[0].maybe_done = True
        case Effect.QUERYABLE if attempts:
            found = [outcome for attempt in attempts if (outcome := await attempt.query_status()) is not None]
            if found:
                return next((outcome for outcome in found if outcome.status is not ToolStatus.UNKNOWN), found[0])
        case _:
            # Unsafe; or idempotent with several integrations, and it is not known which of them has seen the idempotency key.
            return _result_lost()
    return await _start(tool, attempts)


def _no_such_tool(call: ToolCall, tool_names: tuple[str, ...]) -> ToolOutcome:
    available = f"there are: {', '.join(tool_names)}" if tool_names else "this agent has none"
    return _failed(f"There is no tool {call.tool_name[:100]!r}; {available}.")


def _result_lost() -> ToolOutcome:
    return ToolOutcome(ToolStatus.UNKNOWN, error=RESULT_LOST)


def _failed(sentence: str) -> ToolOutcome:
    return ToolOutcome(ToolStatus.FAILED, error=sentence)
