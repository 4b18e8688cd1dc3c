"""The switchboard: a decision comes in, a vendor or a tool's server is asked, an outcome goes out.

Here, and only here, a tool's effect decides whether a call is sent again and what a lost reply means.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from crashpoints import Point, reached
from engine.brief import Effect, IntegrationSpec, ModelRequest, ToolSpec
from engine.errors import Ambiguous, Transient, TurnlineError
from engine.events import ModelReply, ToolCall, ToolOutcome, ToolStatus
from integrations.http import Outside, Sending
from integrations.providers import provider_for
from integrations.tools import Integration, integration_for
from settings import Settings

MAX_TRIES = 3
LONGEST_WAIT_S = 5.0
_FIRST_WAIT_S = 0.2
_REPEATABLE = frozenset({Effect.PURE, Effect.IDEMPOTENT})
NOBODY_HEARD = "It was started and nobody heard how it ended: it may or may not have happened."


class Performer:
    """Carries out what the engine decided. One per process; close it with `aclose` on the loop that used it."""

    def __init__(self, settings: Settings, outside: Outside | None = None) -> None:
        self._outside = outside if outside is not None else Outside(settings)

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
        reached(Point.C7)
        reply = await provider.complete(request, on_delta=on_delta, deadline_s=seconds)
        reached(Point.C8)
        reached(Point.C19)
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
    ) -> ToolOutcome:
        """Return what came of `call`; everything but cancellation is an outcome.

        `tool` is None where the agent has none of that name; `tool_names` are those it has. Pure and idempotent tools are tried up
        to three times with the same key, the others only again where nothing had been sent or done. `deadline_s` is wall-clock time
        for all tries and waits (default: three times `settings.tool_timeout_s`). `begun`: a former attempt had started this call under
        the same key, and nobody heard how it ended.
        """
        began = time.monotonic()
        sending = Sending()
        settings = self._outside.settings
        ends_at = began + (MAX_TRIES * settings.tool_timeout_s if deadline_s is None else deadline_s)
        if begun and (tool is None or tool.effect not in _REPEATABLE):
            return ToolOutcome(ToolStatus.UNKNOWN, error=NOBODY_HEARD, requests=0)
        reached(Point.C10)
        outcome = await self._outcome(tool, call, idempotency_key, ends_at, sending, tool_names)
        reached(Point.C11)
        return replace(outcome, latency_ms=round((time.monotonic() - began) * 1000), requests=sending.requests)

    async def aclose(self) -> None:
        """Close every connection of the running loop."""
        await self._outside.aclose()

    async def _outcome(
        self, tool: ToolSpec | None, call: ToolCall, key: str, ends_at: float, sending: Sending, tool_names: tuple[str, ...]
    ) -> ToolOutcome:
        if tool is None:
            there_are = f"there are: {', '.join(tool_names)}" if tool_names else "this agent has none"
            return _failed(f"There is no tool {call.tool_name[:100]!r}; {there_are}.")
        if call.arguments is None:
            return _failed("The arguments were not a JSON object; call the tool again with one.")
        for spec in tool.integrations:
            integration = integration_for(spec.integration_type, self._outside)
            if integration is not None:
                return await _Attempts(tool, spec, integration, call.arguments, key, ends_at, sending).outcome()
        return _failed(f"The tool {tool.name!r} is not connected to anything that can carry it out.")


@dataclass(slots=True)
class _Attempts:
    """The tries of one tool call, and what is known after them."""

    tool: ToolSpec
    spec: IntegrationSpec
    integration: Integration
    arguments: dict[str, object]
    key: str
    ends_at: float
    sending: Sending
    maybe_done: bool = False

    async def outcome(self) -> ToolOutcome:
        """Try as often as the effect allows, and say what came of it."""
        for attempt in range(1, MAX_TRIES + 1):
            try:
                return await self.integration.call(
                    self.tool,
                    self.spec,
                    self.arguments,
                    idempotency_key=self.key,
                    deadline_s=self.ends_at - time.monotonic(),
                    sending=self.sending,
                )
            except TurnlineError as error:
                self.maybe_done = self.maybe_done or error.maybe_done
                wait_s = self._wait_s(error, attempt)
                if wait_s is None:
                    return self._given_up(error)
                await asyncio.sleep(wait_s)
        raise AssertionError("the last attempt returns")

    def _wait_s(self, error: TurnlineError, attempt: int) -> float | None:
        """How long to wait before the next try, or None where there is none."""
        again = isinstance(error, (Transient, Ambiguous))
        if attempt == MAX_TRIES or not again or (error.maybe_done and self.tool.effect not in _REPEATABLE):
            return None
        asked = error.retry_after_s if isinstance(error, Transient) else None
        # Jitter, so that the calls of one bad moment do not come back in one.
        wait_s = asked if asked is not None else _FIRST_WAIT_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)  # noqa: S311
        return wait_s if wait_s <= LONGEST_WAIT_S and time.monotonic() + wait_s < self.ends_at else None

    def _given_up(self, error: TurnlineError) -> ToolOutcome:
        why = str(error).rstrip(".")
        # A pure tool has no effect that could have happened unheard.
        if self.maybe_done and self.tool.effect is not Effect.PURE:
            sentence = f"It may or may not have happened: {why}. Do not assume either, and do not call it again without asking."
            return ToolOutcome(ToolStatus.UNKNOWN, error=sentence, integration_id=self.spec.id)
        return replace(_failed(f"The tool could not be used: {why}."), integration_id=self.spec.id)


def _failed(sentence: str) -> ToolOutcome:
    return ToolOutcome(ToolStatus.FAILED, error=sentence)
