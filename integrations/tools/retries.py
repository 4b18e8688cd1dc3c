"""Retry a tool call at one integration. Only this module decides, by the tool's effect, whether a call is sent again."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from engine.enums import Effect, ToolStatus
from engine.errors import Ambiguous, Malformed, ProviderDown, RateLimited, Rejected, TimedOut, Transient, TurnlineError
from engine.events import ToolOutcome
from engine.tools.spec import IntegrationSpec, ToolSpec
from integrations.http import RequestCounter
from integrations.tools.base import Integration, Refused

MAX_TRIES = 3
MAX_BACKOFF_S = 5.0
# A status may lag behind the effect: the request is still being executed, or the status is read from a replica. "Not executed" is
# therefore believed only if it is confirmed after this time.
CONFIRM_NOT_DONE_AFTER_S = 1.0
_FIRST_BACKOFF_S = 0.2
REPEATABLE = frozenset({Effect.PURE, Effect.IDEMPOTENT})


OnResult = Callable[[UUID, str | None], None]
"""Called with an integration's id after each request: None if the integration answered, else the reason why not."""


@dataclass(slots=True)
class ToolCallAttempts:
    """The attempts to execute one tool call at one integration.

    `maybe_done`: the call may have been executed; the caller sets it if an earlier run of the turn had started the call. `denied`: the
    integration's status has since said that it was not executed. `ends_at` is on the monotonic clock.
    """

    tool: ToolSpec
    spec: IntegrationSpec
    integration: Integration
    arguments: dict[str, object]
    key: str
    ends_at: float
    counter: RequestCounter
    maybe_done: bool = False
    denied: bool = False
    on_result: OnResult | None = None

    async def run(self, *, has_fallback: bool = False) -> ToolOutcome | None:
        """Try as often as the tool's effect allows and return the outcome.

        Return None if `has_fallback`, the call failed and cannot have been executed here, so that the next integration may try.
        """
        for attempt in range(1, MAX_TRIES + 1):
            sent_before = self.counter.requests
            try:
                outcome = await self.integration.call(
                    self.tool,
                    self.spec,
                    self.arguments,
                    idempotency_key=self.key,
                    deadline_s=self._remaining_s(),
                    counter=self.counter,
                )
                self._report_health(None, sent=True)
                return outcome
            except TurnlineError as error:
                self._report_health(error, sent=self.counter.requests > sent_before)
                self.maybe_done = self.maybe_done or error.maybe_done
                if self.maybe_done and self.tool.effect is Effect.QUERYABLE and (found := await self.query_status(error)) is not None:
                    return found
                if has_fallback and self._may_fall_back(error):
                    return None
                backoff_s = self._backoff_before_retry_s(error, attempt)
                if backoff_s is None:
                    return self._failed(error)
                await asyncio.sleep(backoff_s)
        raise AssertionError("the last attempt returns")

    async def query_status(self, error: TurnlineError | None = None) -> ToolOutcome | None:
        """Return the outcome of a call that was executed, `unknown` if the status cannot be had, or None if it was not executed.

        `error` is the failure of our own attempt that made us ask, if there was one.
        """
        try:
            found = await self._confirmed_status()
        except TurnlineError as status_error:
            reason = _clause(status_error)
            return self._unknown(reason if error is None else f"{_clause(error)}, and {reason[:1].lower()}{reason[1:]}")
        if found is None:
            self.maybe_done, self.denied = False, True
        return found

    async def _confirmed_status(self) -> ToolOutcome | None:
        failures, denied_at, wait_s = 0, None, 0.0
        while True:
            if wait_s >= self._remaining_s():
                raise TimedOut("there was no time to ask for its status" + (" a second time" if denied_at else ""))
            await asyncio.sleep(wait_s)
            try:
                found = await self.integration.status(
                    self.tool, self.spec, self.arguments, idempotency_key=self.key, deadline_s=self._remaining_s()
                )
            except TurnlineError as error:
                failures += 1
                wait_s = _backoff_s(error, failures)
                if failures == MAX_TRIES or isinstance(error, Rejected) or wait_s > MAX_BACKOFF_S:
                    raise
                continue
            now = time.monotonic()
            if found is not None or (denied_at is not None and now - denied_at >= CONFIRM_NOT_DONE_AFTER_S):
                return found
            denied_at = denied_at or now
            wait_s = CONFIRM_NOT_DONE_AFTER_S / 2

    def _report_health(self, error: TurnlineError | None, *, sent: bool) -> None:
        """Call `on_result` if the result says something about the integration's health. `sent`: the request had been sent.

        A refusal and a rate limit by the server are answers. Our own refusal says nothing. Neither does a 5xx: one bad argument may
        cause it, and the next probe shows whether the server is down.
        """
        if self.on_result is None:
            return
        if isinstance(error, (TimedOut, Ambiguous, Malformed)) or (isinstance(error, ProviderDown) and not sent):
            self.on_result(self.spec.id, str(error))
        elif error is None or (isinstance(error, (Rejected, RateLimited)) and sent):
            self.on_result(self.spec.id, None)

    def _may_fall_back(self, error: TurnlineError) -> bool:
        """Return True if another integration, which does not know this one's idempotency keys, may execute the call."""
        not_executed = self.tool.effect is Effect.PURE or not (self.maybe_done or self.denied)
        return not_executed and isinstance(error, (Transient, Ambiguous))

    def _backoff_before_retry_s(self, error: TurnlineError, attempt: int) -> float | None:
        """Return how many seconds to wait before the next attempt, or None if there must be none."""
        may_succeed = isinstance(error, (Transient, Ambiguous))
        if attempt == MAX_TRIES or not may_succeed or (self.maybe_done and self.tool.effect not in REPEATABLE):
            return None
        backoff_s = _backoff_s(error, attempt)
        return backoff_s if backoff_s <= MAX_BACKOFF_S and backoff_s < self._remaining_s() else None

    def _remaining_s(self) -> float:
        return self.ends_at - time.monotonic()

    def _failed(self, error: TurnlineError) -> ToolOutcome:
        # A pure tool has no effect that could have happened. For the others, a refusal proves nothing after a lost reply: a second
        # cancellation is answered 404, a call that is still being executed 409.
        if self.maybe_done and self.tool.effect is not Effect.PURE:
            return self._unknown(_clause(error))
        sentence = str(error) if isinstance(error, Refused) else f"The tool could not be used: {_clause(error)}."
        return ToolOutcome(ToolStatus.FAILED, error=sentence, integration_id=self.spec.id)

    def _unknown(self, reason: str) -> ToolOutcome:
        sentence = f"It may or may not have happened: {reason}. Do not assume either, and do not call it again without asking."
        return ToolOutcome(ToolStatus.UNKNOWN, error=sentence, integration_id=self.spec.id)


def _backoff_s(error: TurnlineError, tries: int) -> float:
    requested_s = error.retry_after_s if isinstance(error, Transient) else None
    # With jitter, so that calls that failed together are not retried together.
    return requested_s if requested_s is not None else _FIRST_BACKOFF_S * 2 ** (tries - 1) * random.uniform(0.5, 1.5)  # noqa: S311


def _clause(error: TurnlineError) -> str:
    return str(error).rstrip(".")
