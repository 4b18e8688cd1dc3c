"""The switchboard: a decision comes in, a vendor or a tool's server is asked, an outcome goes out."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

from engine.enums import Effect, ToolStatus
from engine.events import ModelReply, ToolCall, ToolOutcome, Usage
from engine.model.tokens import bound_tokens, estimated_usage
from engine.sentences import RESULT_LOST
from engine.turn.context import Bound, Cost, ModelRequest, ToolSpec, TurnContext
from failpoints import failpoint
from integrations.http import HttpClients, RequestCounter
from integrations.price_list import cost_of, max_cost_of
from integrations.providers import provider_for
from integrations.tools import integration_for
from integrations.tools.retries import MAX_TRIES, Attempts, OnResult
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
            outcome = await (_resume(tool, attempts) if begun else _first_time(tool, attempts))
        failpoint("tool_call.answered")
        return replace(outcome, latency_ms=round((time.monotonic() - began) * 1000), requests=counter.requests)

    async def aclose(self) -> None:
        """Close every connection of the running loop."""
        await self._clients.aclose()

    def _attempts(
        self, tool: ToolSpec, arguments: dict[str, object], key: str, ends_at: float, counter: RequestCounter, on_result: OnResult | None
    ) -> list[Attempts]:
        """Return one `Attempts` for each of the tool's integrations that is supported here, in order."""
        supported = ((spec, integration_for(spec.integration_type, self._clients)) for spec in tool.integrations)
        return [
            Attempts(tool, spec, integration, arguments, key, ends_at, counter, on_result=on_result)
            for spec, integration in supported
            if integration is not None
        ]


async def _first_time(tool: ToolSpec, ways: list[Attempts]) -> ToolOutcome:
    """A call that nobody has sent yet: the first integration that can be reached makes it."""
    for way in ways:
        outcome = await way.outcome(others=way is not ways[-1])
        if outcome is not None:
            return outcome
    return _failed(f"The tool {tool.name!r} is not connected to anything that can carry it out.")


async def _resume(tool: ToolSpec, ways: list[Attempts]) -> ToolOutcome:
    """A call that a former attempt may have sent, to whichever integration it could reach."""
    match tool.effect:
        case Effect.PURE:
            return await _first_time(tool, ways)
        case Effect.IDEMPOTENT if len(ways) == 1:
            ways[0].maybe_done = True
        case Effect.QUERYABLE if ways:
            told = [known for way in ways if (known := await way.asked()) is not None]
            if told:
                return next((known for known in told if known.status is not ToolStatus.UNKNOWN), told[0])
        case _:
            # Unsafe; or idempotent, and only one of its integrations knows the key, nobody knows which.
            return _result_lost()
    return await _first_time(tool, ways)


def _no_such_tool(call: ToolCall, tool_names: tuple[str, ...]) -> ToolOutcome:
    there_are = f"there are: {', '.join(tool_names)}" if tool_names else "this agent has none"
    return _failed(f"There is no tool {call.tool_name[:100]!r}; {there_are}.")


def _result_lost() -> ToolOutcome:
    return ToolOutcome(ToolStatus.UNKNOWN, error=RESULT_LOST)


def _failed(sentence: str) -> ToolOutcome:
    return ToolOutcome(ToolStatus.FAILED, error=sentence)
