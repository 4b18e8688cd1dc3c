"""Read, fold, decide, perform, append: one turn, from its claim to its rest."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from engine.brief import Brief, Cost, Effect, ModelRequest
from engine.change import (
    CallState,
    Change,
    Finish,
    Park,
    Reserve,
    Reserved,
    Rest,
    SettledCall,
    ToolSettled,
    Written,
)
from engine.decide import CallModel, CallTools, decide, tool_intents
from engine.errors import Ambiguous, Permanent, RateLimited, Transient, TurnlineError, Unreachable
from engine.events import Event, EventKind, ModelReply, Source, ToolCall, ToolOutcome, ToolStatus
from engine.prompt import model_request
from engine.turn import TurnState

INLINE_WAIT_S = 5.0  # a longer wait holds no worker: the turn is parked
INLINE_TRIES = 3
PARK_MAX_S = 60.0


class TurnLog(Protocol):
    """The log of a claimed turn."""

    async def write(self, change: Change) -> Written:
        """Commit `change`, all of it or nothing. Raises LeaseLost when another claim holds the session."""


class Perform(Protocol):
    """Everything that waits for another machine."""

    async def call_model(self, request: ModelRequest) -> tuple[ModelReply, Cost]:
        """One request to a model provider. Raises what `engine.errors` names."""

    async def call_tool(self, brief: Brief, call: ToolCall, idempotency_key: str, *, begun: bool) -> ToolOutcome:
        """One tool call, retried within itself as the tool's effect allows. Raises nothing but cancellation.

        `begun`: a former worker had begun it, and whether it happened is not known.
        """


@dataclass(frozen=True, slots=True)
class Start:
    """Where a claim finds the turn. `reserved`: the model call that the claim itself reserved, where one comes next.

    `begun`: the idempotency keys of tool calls that a former claim had begun, by tool call id; whether they happened is not known.
    `elapsed_s`: since the turn was first claimed. `attempts` counts this claim.
    """

    events: tuple[Event, ...]
    reserved: Reserved | None
    begun: Mapping[str, str]
    elapsed_s: float = 0.0
    attempts: int = 1


async def advance(
    log: TurnLog, perform: Perform, brief: Brief, start: Start, *, slice_s: float = 120.0, patience_s: float = 3600.0
) -> Rest:
    """Drive one turn until it finishes or parks, and return which.

    Each pass is durable: what `perform` learned is committed together with the intent of the next step, so a dead worker's turn
    resumes from the log and repeats nothing that had finished. Customer messages that arrive meanwhile are read by the next model call.
    After `slice_s` the turn is parked for no time at all, so that a long one never outlives the limits on a task; a turn that the
    provider has kept waiting for more than `patience_s` since it was first claimed fails.

    Raises:
        LeaseLost: another worker holds the turn now; nothing more of it was written here.
    """
    return await _Course(log, perform, brief, start, slice_s, patience_s).run()


class _Course:
    """One claim's way through a turn."""

    def __init__(self, log: TurnLog, perform: Perform, brief: Brief, start: Start, slice_s: float, patience_s: float) -> None:
        self.log, self.perform, self.brief, self.start = log, perform, brief, start
        self.state = TurnState(brief.turn_id).then(start.events)
        self.reserved = start.reserved  # the model call whose ledger row waits for its outcome
        self.keys = dict(start.begun)
        self.tries = 0
        self.clock = asyncio.get_running_loop().time
        self.ends_at = self.clock() + slice_s
        self.gives_up_at = self.clock() + patience_s - start.elapsed_s

    async def run(self) -> Rest:
        decision = decide(self.state, self.brief)
        while True:
            match decision:
                case CallModel(step):
                    change = await self._ask_model() if self.reserved else self._reserving(Change(), Reserved(step, 0))
                case CallTools():
                    change = await self._use_tools(decision)
                case Finish():
                    change = self._ending(
                        Change(model_call=self._outcome(CallState.FAILED, "NotSent") if self.reserved else None), decision
                    )
            written = await self.log.write(change)
            if change.rest is not None:
                return change.rest
            self.state = self.state.then((*change.events, *written.news))
            decision = decide(self.state, self.brief)

    async def _ask_model(self) -> Change:
        begun_at = self.clock()
        try:
            reply, cost = await self.perform.call_model(model_request(self.state, self.brief))
        except (Transient, Ambiguous) as error:
            return await self._try_again(error, begun_at)
        except Permanent as error:
            settled = self._outcome(_state_of(error), error.error_class, begun_at)
            return self._ending(Change(model_call=settled), Finish("failed", error.error_class, str(error)))
        self.tries = 0
        settled = self._outcome(CallState.SETTLED, None, begun_at, reply, cost)
        if not reply.tool_calls and not reply.text:
            detail = f"the model answered with nothing (finish reason: {reply.finish_reason})"
            return self._ending(Change(model_call=settled), Finish("failed", "EmptyReply", detail))
        return self._intending(Change(events=self._reply_events(reply), model_call=settled))

    def _outcome(
        self,
        state: CallState,
        error_class: str | None,
        begun_at: float | None = None,
        reply: ModelReply | None = None,
        cost: Cost | None = None,
    ) -> SettledCall:
        assert self.reserved is not None, "a model call without its ledger row"  # noqa: S101 - the loop's own invariant
        call, self.reserved = self.reserved, None
        latency_ms = None if begun_at is None else round((self.clock() - begun_at) * 1000)
        return SettledCall(call, state, reply, cost or Cost(None, None), error_class, latency_ms)

    async def _try_again(self, error: Transient | Ambiguous, begun_at: float) -> Change:
        """After a failed request: try again here if that is soon, park if it is not, give up when patience has run out."""
        settled = self._outcome(_state_of(error), error.error_class, begun_at)
        wished = error.retry_after_s if isinstance(error, Transient) else None
        self.tries += 1
        short_s = wished if wished is not None else random.uniform(0.1, 0.5 * 2**self.tries)  # noqa: S311 - jitter
        if self.tries < INLINE_TRIES and short_s <= INLINE_WAIT_S:
            await asyncio.sleep(short_s)
            return self._reserving(Change(model_call=settled), Reserved(settled.call.step, settled.call.attempt + 1))
        # A wait that costs no attempt grows with the turn's age instead.
        longest_s = max(2.0 ** (self.start.attempts + 1), self.start.elapsed_s / 4)
        jitter_s = random.uniform(1.0, min(PARK_MAX_S, longest_s))  # noqa: S311
        wait_s = max(wished or 0.0, jitter_s)
        if self.clock() + wait_s > self.gives_up_at:
            detail = f"{error}; waiting {wait_s:.0f} s more would be longer than a turn may last"
            return self._ending(Change(model_call=settled), Finish("failed", error.error_class, detail))
        return Change(model_call=settled, rest=Park(wait_s, isinstance(error, RateLimited | Unreachable), error.error_class, str(error)))

    async def _use_tools(self, decision: CallTools) -> Change:
        outcomes: dict[str, ToolOutcome] = {}

        async def use(call: ToolCall) -> None:
            outcomes[call.tool_call_id] = await self._use_tool(call, refused=call.tool_call_id in decision.refused)

        async with asyncio.TaskGroup() as group:
            for call in decision.calls:
                group.create_task(use(call))
        events = tuple(result_event(call, outcomes[call.tool_call_id]) for call in decision.calls)
        results = tuple(ToolSettled(call.tool_call_id, outcomes[call.tool_call_id]) for call in decision.calls)
        return self._intending(Change(events=events, tool_results=results))

    async def _use_tool(self, call: ToolCall, *, refused: bool) -> ToolOutcome:
        if refused:
            limit = self.brief.limits.tool_calls
            return ToolOutcome(ToolStatus.DENIED, error=f"This turn has used up its {limit} tool calls.", requests=0)
        tool = self.brief.tool(call.tool_name)
        begun = call.tool_call_id in self.start.begun
        if begun and (tool is None or tool.effect is Effect.UNSAFE):
            return ToolOutcome(
                ToolStatus.UNKNOWN, error="It was started and nobody heard how it ended: it may or may not have happened.", requests=0
            )
        return await self.perform.call_tool(self.brief, call, self.keys[call.tool_call_id], begun=begun)

    def _intending(self, change: Change) -> Change:
        """`change` with the intent of what follows it, in the same commit."""
        state = self.state.then(change.events)
        match decide(state, self.brief):
            case CallModel(step):
                if self.clock() > self.ends_at:
                    return replace(change, rest=Park(0.0, refund=True))
                return self._reserving(change, Reserved(step, 0))
            case CallTools(calls):
                intents = tool_intents(calls, self.brief, state.step - 1)
                self.keys = {intent.tool_call_id: intent.idempotency_key for intent in intents}
                return replace(change, tool_calls=intents)
            case Finish() as finish:
                return self._ending(change, finish)

    def _reserving(self, change: Change, call: Reserved) -> Change:
        self.reserved = call
        return replace(change, reserve=Reserve(call, self.brief.model_provider, self.brief.model_name, self.state.heard))

    def _ending(self, change: Change, finish: Finish) -> Change:
        events = change.events if finish.status == "done" else (*change.events, failure_event(finish))
        return replace(change, events=events, rest=finish)

    def _reply_events(self, reply: ModelReply) -> tuple[Event, ...]:
        place = {"step": self.state.step, "read_through": self.state.heard}
        turn_id = self.brief.turn_id
        if not reply.tool_calls:
            metadata = {**place, "model": reply.model, "finish_reason": str(reply.finish_reason)}
            return (Event(EventKind.AGENT_MESSAGE, Source.AI_AGENT, {"text": reply.text}, metadata, turn_id),)
        events = []
        for position, call in enumerate(reply.tool_calls):
            content = {"tool_call_id": call.tool_call_id, "tool_name": call.tool_name, "arguments": call.arguments}
            extra: dict[str, object] = {"position": position, "raw_arguments": call.raw_arguments}
            if position == 0 and reply.text:
                extra["text"] = reply.text
            if position == 0 and reply.opaque:
                extra["opaque"] = list(reply.opaque)
            events.append(Event(EventKind.TOOL_CALL, Source.AI_AGENT, content, {**place, **extra}, turn_id))
        return tuple(events)


def _state_of(error: TurnlineError) -> CallState:
    return CallState.UNKNOWN if error.maybe_done else CallState.FAILED


def result_event(call: ToolCall, outcome: ToolOutcome) -> Event:
    """The `tool_result` of a call, as it stands in the log."""
    content: dict[str, object] = {"tool_call_id": call.tool_call_id, "tool_name": call.tool_name, "status": str(outcome.status)}
    if outcome.status is ToolStatus.SUCCEEDED:
        content["result"] = outcome.result
    else:
        content["error"] = outcome.error
    return Event(EventKind.TOOL_RESULT, Source.SYSTEM, content)


def failure_event(finish: Finish) -> Event:
    """The `status_update` a customer's client can show when a turn ends without a reply. Names the class of error, not its detail."""
    text = "This message could not be answered."
    return Event(EventKind.STATUS_UPDATE, Source.SYSTEM, {"status": finish.status, "error_class": finish.error_class, "text": text})
