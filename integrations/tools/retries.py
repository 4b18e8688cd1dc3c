"""The tries of one tool call at one integration: here, and only here, a tool's effect decides whether a call is sent again."""

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
from engine.turn.context import IntegrationSpec, ToolSpec
from integrations.http import RequestCounter
from integrations.tools import Integration
from integrations.tools.http.request import Refused

MAX_TRIES = 3
LONGEST_WAIT_S = 5.0
# An effect may show a little later than it happens: the request is still being carried out, or the status reads a copy that lags.
# "It did not happen" is believed only when it is said again after this long.
BELIEVED_AFTER_S = 1.0
_FIRST_WAIT_S = 0.2
REPEATABLE = frozenset({Effect.PURE, Effect.IDEMPOTENT})


OnResult = Callable[[UUID, str | None], None]
"""Told of an integration whether a request of a call was answered (None), or why it was not."""


@dataclass(slots=True)
class Attempts:
    """One integration of a tool, one call, and what is known about it.

    `maybe_done`: it may have happened, and nobody knows; set from the start where a former attempt had begun the call. `doubted`: that
    was so once, and its status has told since. `ends_at` is on the monotonic clock. `on_result` is told how each request went.
    """

    tool: ToolSpec
    spec: IntegrationSpec
    integration: Integration
    arguments: dict[str, object]
    key: str
    ends_at: float
    counter: RequestCounter
    maybe_done: bool = False
    doubted: bool = False
    on_result: OnResult | None = None

    async def outcome(self, *, others: bool = False) -> ToolOutcome | None:
        """Try as often as the effect allows, and say what came of it; None where the next integration takes over.

        That is only so where there are `others` and nothing can have been done here.
        """
        for attempt in range(1, MAX_TRIES + 1):
            sent = self.counter.requests
            try:
                outcome = await self.integration.call(
                    self.tool,
                    self.spec,
                    self.arguments,
                    idempotency_key=self.key,
                    deadline_s=self._left_s(),
                    counter=self.counter,
                )
                self._heard(None, answered=True)
                return outcome
            except TurnlineError as error:
                self._heard(error, answered=self.counter.requests > sent)
                self.maybe_done = self.maybe_done or error.maybe_done
                if self.maybe_done and self.tool.effect is Effect.QUERYABLE and (known := await self.asked(error)) is not None:
                    return known
                if others and self._passes_on(error):
                    return None
                wait_s = self._wait_s(error, attempt)
                if wait_s is None:
                    return self._given_up(error)
                await asyncio.sleep(wait_s)
        raise AssertionError("the last attempt returns")

    async def asked(self, error: TurnlineError | None = None) -> ToolOutcome | None:
        """Ask for the call's status: the outcome of a call that happened, or `unknown`; None where it did not happen.

        `error` is why it is asked, if a try of ours came before.
        """
        try:
            found = await self._status()
        except TurnlineError as failure:
            why = _clause(failure)
            return self._unknown(why if error is None else f"{_clause(error)}, and {why[:1].lower()}{why[1:]}")
        if found is None:
            self.maybe_done, self.doubted = False, True
        return found

    async def _status(self) -> ToolOutcome | None:
        failures, denied_at, wait_s = 0, None, 0.0
        while True:
            if wait_s >= self._left_s():
                raise TimedOut("there was no time to ask for its status" + (" a second time" if denied_at else ""))
            await asyncio.sleep(wait_s)
            try:
                found = await self.integration.status(
                    self.tool, self.spec, self.arguments, idempotency_key=self.key, deadline_s=self._left_s()
                )
            except TurnlineError as error:
                failures += 1
                wait_s = _backoff_s(error, failures)
                if failures == MAX_TRIES or isinstance(error, Rejected) or wait_s > LONGEST_WAIT_S:
                    raise
                continue
            now = time.monotonic()
            if found is not None or (denied_at is not None and now - denied_at >= BELIEVED_AFTER_S):
                return found
            denied_at = denied_at or now
            wait_s = BELIEVED_AFTER_S / 2

    def _heard(self, error: TurnlineError | None, *, answered: bool) -> None:
        """Tell how a request went, if that says anything. `answered`: it had been sent, so what is no failure of the wire is an answer.

        A refusal and a rate limit are answers. Our own refusal says nothing; nor does a 5xx, which one bad argument may bring about, and
        which the next probe tells from a server that is gone.
        """
        if self.on_result is None:
            return
        if isinstance(error, (TimedOut, Ambiguous, Malformed)) or (isinstance(error, ProviderDown) and not answered):
            self.on_result(self.spec.id, str(error))
        elif error is None or (isinstance(error, (Rejected, RateLimited)) and answered):
            self.on_result(self.spec.id, None)

    def _passes_on(self, error: TurnlineError) -> bool:
        """Whether another integration, which knows nothing of this one's keys, may make the call instead."""
        nothing_done = self.tool.effect is Effect.PURE or not (self.maybe_done or self.doubted)
        return nothing_done and isinstance(error, (Transient, Ambiguous))

    def _wait_s(self, error: TurnlineError, attempt: int) -> float | None:
        """How long to wait before the next try, or None where there is none."""
        again = isinstance(error, (Transient, Ambiguous))
        if attempt == MAX_TRIES or not again or (self.maybe_done and self.tool.effect not in REPEATABLE):
            return None
        wait_s = _backoff_s(error, attempt)
        return wait_s if wait_s <= LONGEST_WAIT_S and wait_s < self._left_s() else None

    def _left_s(self) -> float:
        return self.ends_at - time.monotonic()

    def _given_up(self, error: TurnlineError) -> ToolOutcome:
        # A pure tool has no effect that could have happened unheard. For the others a refusal proves nothing once a reply was
        # lost: a second cancellation is answered 404, a call that is still being carried out 409.
        if self.maybe_done and self.tool.effect is not Effect.PURE:
            return self._unknown(_clause(error))
        sentence = str(error) if isinstance(error, Refused) else f"The tool could not be used: {_clause(error)}."
        return ToolOutcome(ToolStatus.FAILED, error=sentence, integration_id=self.spec.id)

    def _unknown(self, why: str) -> ToolOutcome:
        sentence = f"It may or may not have happened: {why}. Do not assume either, and do not call it again without asking."
        return ToolOutcome(ToolStatus.UNKNOWN, error=sentence, integration_id=self.spec.id)


def _backoff_s(error: TurnlineError, tries: int) -> float:
    asked = error.retry_after_s if isinstance(error, Transient) else None
    # Jitter, so that the calls of one bad moment do not come back in one.
    return asked if asked is not None else _FIRST_WAIT_S * 2 ** (tries - 1) * random.uniform(0.5, 1.5)  # noqa: S311


def _clause(error: TurnlineError) -> str:
    return str(error).rstrip(".")
