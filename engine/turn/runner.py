"""One claim's way through a turn, commit by commit."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from engine.enums import CancelReason, Effect, FinishReason, ModelCallState, ToolCallState, ToolStatus
from engine.errors import Ambiguous, Permanent, RateLimited, Transient, TurnlineError, Unreachable
from engine.events import ModelReply, ToolCall, ToolOutcome
from engine.model.prompt import model_request
from engine.safe_json import clean_text
from engine.turn.cancellation import CancelToken
from engine.turn.commit import CommitResult, Finish, Outcome, Park, Reserve, Reserved, SettledCall, ToolSettled, TurnCommit
from engine.turn.context import Cost, TurnContext
from engine.turn.decide import CallModel, CallTools, decide, tool_intents
from engine.turn.log_events import cancelled_event, failure_event, reply_events, result_event
from engine.turn.pending_calls import Pending, sort
from engine.turn.ports import Perform, ResumePoint, TurnLog
from engine.turn.state import TurnState

INLINE_WAIT_S = 5.0  # a longer wait holds no worker: the turn is parked
INLINE_TRIES = 3
PARK_MAX_S = 60.0

Result = TypeVar("Result")


class CutOff(Exception):
    """What was under way was cut off, because the turn is to stop."""


class TurnRunner:
    """One claim's way through a turn."""

    def __init__(
        self, log: TurnLog, perform: Perform, context: TurnContext, start: ResumePoint, stop: CancelToken, slice_s: float, patience_s: float
    ) -> None:
        self.log, self.perform, self.context, self.start, self.stop = log, perform, context, start, stop
        self.state = TurnState.of(context.turn_id, context.opened_at_offset, start.events)
        self.reserved = start.reserved  # the model call whose ledger row waits for its outcome
        self.covered = not context.budgeted  # whether budgets hold what that call may cost
        self.refused: str | None = None  # why no budget has room for it
        self.rows = dict(start.pending)  # the pending tool calls that have a row
        self.fresh: set[str] = set()  # those of them that were begun by this claim, and by nobody before
        self.tries = 0
        self.clock = asyncio.get_running_loop().time
        self.ends_at = self.clock() + slice_s
        self.gives_up_at = self.clock() + patience_s - start.elapsed_s
        self.spent_at = self.clock() + context.limits.wall_clock_s - start.running_s

    async def run(self) -> Outcome:
        """Commit after commit, until the turn rests."""
        while True:
            change = await self._next()
            written = await self.log.write(change)
            if change.rest is not None:
                return change.rest
            self._learn(change, written)

    def _learn(self, change: TurnCommit, written: CommitResult) -> None:
        self.state = self.state.then((*change.events, *written.news))
        stopped = written.stop is not None
        if written.stop is not None:
            self.stop.ask(CancelReason(written.stop))
        for intent in change.tool_calls:
            state = ToolCallState.REQUESTED if stopped else ToolCallState.RUNNING
            if intent.approval_hash is not None:
                state = ToolCallState.AWAITING_APPROVAL
            self._row(intent.tool_call_id, Pending(intent.idempotency_key, state))
        if not stopped:
            for begun in change.starts:
                self._row(begun.tool_call_id, replace(self.rows[begun.tool_call_id], state=ToolCallState.RUNNING))
        if change.reserve is not None:
            self.refused = written.refused
            if (stopped or written.refused) and not change.reserve.again:
                self.reserved = None
            # News that came with the commit makes the call longer than what was held for it.
            self.covered = not self.context.budgeted or not written.news

    def _row(self, tool_call_id: str, row: Pending) -> None:
        self.rows[tool_call_id] = row
        if row.state is ToolCallState.RUNNING:
            self.fresh.add(tool_call_id)

    async def _next(self) -> TurnCommit:
        if self.refused is not None:
            return self._ending(self._unsent(), Finish("failed", "BudgetSpent", self.refused))
        if self.stop.reason is CancelReason.PAUSED:
            return replace(self._unsent(), rest=Park(0.0, refund=True))
        if self.stop.reason is not None:
            return self._stopping(self._unsent(), self.stop.reason)
        match decision := self._decide(self.state):
            case CallModel(step):
                if self.reserved is None:
                    return self._reserving(TurnCommit(), Reserved(step, 0))
                if not self.covered:
                    return self._reserving(TurnCommit(), self.reserved, again=True)
                return await self._ask_model()
            case CallTools():
                return await self._use_tools(decision)
            case Finish():
                return self._ending(self._unsent(), decision)

    def _decide(self, state: TurnState) -> CallModel | CallTools | Finish:
        decision = decide(state, self.context)
        if isinstance(decision, CallModel) and self.clock() > self.spent_at:
            limit = self.context.limits.wall_clock_s
            return Finish("failed", "BudgetSpent", f"no reply after {limit:.0f} s of work, the limit of one turn")
        return decision

    async def _run_or_cancel(self, work: Coroutine[Any, Any, Result]) -> Result:
        """What `work` returns or raises. Raises CutOff where a stop was asked for first; then it runs on no more."""
        working = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self.stop.wait())
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                working.cancel()
                await asyncio.wait({working})
            if working.cancelled():
                raise CutOff
            return working.result()
        finally:
            working.cancel()
            stopping.cancel()
            await asyncio.gather(working, stopping, return_exceptions=True)

    async def _ask_model(self) -> TurnCommit:
        begun_at = self.clock()
        request = model_request(self.state, self.context)
        heard: list[str] = []
        try:
            reply, cost = await self._run_or_cancel(self.perform.call_model(request, heard))
        except CutOff:
            assert self.stop.reason is not None  # noqa: S101 - nothing else cuts it off
            partial = clean_text("".join(heard))
            usage, cost = self.perform.estimate(request, partial)
            cut = ModelReply(partial, (), FinishReason.STOP, self.context.model_name, usage)
            settled = replace(self._outcome(ModelCallState.SETTLED, self.stop.reason, begun_at, cut, cost), estimated=True)
            return self._stopping(TurnCommit(model_call=settled), self.stop.reason, partial)
        except (Transient, Ambiguous) as error:
            return await self._try_again(error, begun_at)
        except Permanent as error:
            settled = self._outcome(_state_of(error), error.error_class, begun_at)
            return self._ending(TurnCommit(model_call=settled), Finish("failed", error.error_class, str(error)))
        self.tries = 0
        settled = self._outcome(ModelCallState.SETTLED, None, begun_at, reply, cost)
        if not reply.tool_calls and not reply.text:
            detail = f"the model answered with nothing (finish reason: {reply.finish_reason})"
            return self._ending(TurnCommit(model_call=settled), Finish("failed", "EmptyReply", detail))
        events = reply_events(reply, self.context.turn_id, step=self.state.step, read_through=self.state.heard)
        return self._intending(TurnCommit(events=events, model_call=settled))

    def _outcome(
        self,
        state: ModelCallState,
        error_class: str | None,
        begun_at: float | None = None,
        reply: ModelReply | None = None,
        cost: Cost | None = None,
    ) -> SettledCall:
        assert self.reserved is not None, "a model call without its ledger row"  # noqa: S101 - the loop's own invariant
        call, self.reserved = self.reserved, None
        latency_ms = None if begun_at is None else round((self.clock() - begun_at) * 1000)
        return SettledCall(call, state, reply, cost or Cost(None, None), error_class, latency_ms)

    def _unsent(self) -> TurnCommit:
        """A reserved call that will not be made after all is settled as such."""
        return TurnCommit(model_call=self._outcome(ModelCallState.FAILED, "NotSent") if self.reserved else None)

    async def _try_again(self, error: Transient | Ambiguous, begun_at: float) -> TurnCommit:
        """After a failed request: try again here if that is soon, park if it is not, give up when patience has run out."""
        settled = self._outcome(_state_of(error), error.error_class, begun_at)
        wished = error.retry_after_s if isinstance(error, Transient) else None
        self.tries += 1
        short_s = wished if wished is not None else random.uniform(0.1, 0.5 * 2**self.tries)  # noqa: S311 - jitter
        if self.tries < INLINE_TRIES and short_s <= INLINE_WAIT_S:
            try:
                await self._run_or_cancel(asyncio.sleep(short_s))
            except CutOff:
                return TurnCommit(model_call=settled)
            return self._reserving(TurnCommit(model_call=settled), Reserved(settled.call.step, settled.call.attempt + 1))
        # A wait that costs no attempt grows with the turn's age instead.
        longest_s = max(2.0 ** (self.start.attempts + 1), self.start.elapsed_s / 4)
        jitter_s = random.uniform(1.0, min(PARK_MAX_S, longest_s))  # noqa: S311
        wait_s = max(wished or 0.0, jitter_s)
        if self.clock() + wait_s > self.gives_up_at:
            detail = f"{error}; waiting {wait_s:.0f} s more would be longer than a turn may last"
            return self._ending(TurnCommit(model_call=settled), Finish("failed", error.error_class, detail))
        return TurnCommit(
            model_call=settled, rest=Park(wait_s, isinstance(error, RateLimited | Unreachable), error.error_class, str(error))
        )

    async def _use_tools(self, decision: CallTools) -> TurnCommit:
        todo = sort(decision.calls, self.rows, self.context)
        if todo.starts:
            return TurnCommit(starts=todo.starts)
        if not todo.ready and not todo.answers:
            return TurnCommit(rest=Park(0.0, refund=True, for_approval=True))
        outcomes = dict(todo.answers)

        async def use(call: ToolCall) -> None:
            outcomes[call.tool_call_id] = await self._use_tool(call, refused=call.tool_call_id in decision.refused)

        async def use_all() -> None:
            async with asyncio.TaskGroup() as group:
                for call in todo.ready:
                    group.create_task(use(call))

        try:
            await self._run_or_cancel(use_all())
        except CutOff:
            assert self.stop.reason is not None  # noqa: S101 - nothing else cuts it off
            cut = {call.tool_call_id: self._cut_off(call) for call in todo.ready}
            return self._stopping(self._resulting(decision.calls, cut | outcomes), self.stop.reason)
        return self._intending(self._resulting(decision.calls, outcomes))

    async def _use_tool(self, call: ToolCall, *, refused: bool) -> ToolOutcome:
        if refused:
            limit = self.context.limits.tool_calls
            return ToolOutcome(ToolStatus.DENIED, error=f"This turn has used up its {limit} tool calls.", requests=0)
        begun = call.tool_call_id not in self.fresh
        tool = self.context.tool(call.tool_name)
        if begun and (tool is None or tool.effect is Effect.UNSAFE):
            return ToolOutcome(
                ToolStatus.UNKNOWN, error="It was started and nobody heard how it ended: it may or may not have happened.", requests=0
            )
        return await self.perform.call_tool(self.context, call, self.rows[call.tool_call_id].idempotency_key, begun=begun)

    def _cut_off(self, call: ToolCall) -> ToolOutcome:
        """What is known of a call that was under way when the turn was stopped."""
        tool = self.context.tool(call.tool_name)
        if tool is None or tool.effect is Effect.PURE:
            return ToolOutcome(ToolStatus.FAILED, error="It was cut off: the reply was cancelled.")
        return ToolOutcome(ToolStatus.UNKNOWN, error="It was cut off when the reply was cancelled: it may or may not have happened.")

    def _resulting(self, calls: tuple[ToolCall, ...], outcomes: dict[str, ToolOutcome]) -> TurnCommit:
        """The results of those calls that have an outcome, in the order asked."""
        had = [call for call in calls if call.tool_call_id in outcomes]
        events = []
        for call in had:
            approval = self.rows[call.tool_call_id].approval if call.tool_call_id in self.rows else None
            events.append(result_event(call, outcomes[call.tool_call_id], approval.edited_arguments if approval else None))
        return TurnCommit(
            events=tuple(events), tool_results=tuple(ToolSettled(call.tool_call_id, outcomes[call.tool_call_id]) for call in had)
        )

    def _intending(self, change: TurnCommit) -> TurnCommit:
        """`change` with the intent of what follows it, in the same commit."""
        state = self.state.then(change.events)
        match self._decide(state):
            case CallModel(step):
                if self.clock() > self.ends_at:
                    return replace(change, rest=Park(0.0, refund=True))
                return self._reserving(change, Reserved(step, 0))
            case CallTools(calls, refused):
                new = tuple(call for call in calls if call.tool_call_id not in self.rows)
                intents = tool_intents(new, self.context, state.step - 1, refused)
                # Where everything that is left waits for a person, no worker does.
                waits = all(intent.approval_hash is not None for intent in intents)
                return replace(change, tool_calls=intents, rest=Park(0.0, refund=True, for_approval=True) if waits else None)
            case Finish() as finish:
                return self._ending(change, finish)

    def _reserving(self, change: TurnCommit, call: Reserved, *, again: bool = False) -> TurnCommit:
        self.reserved = call
        bound = None
        if self.context.budgeted:
            bound = self.perform.bound(model_request(self.state.then(change.events), self.context))
        reserve = Reserve(call, self.context.model_provider, self.context.model_name, self.state.heard, bound, again)
        return replace(change, reserve=reserve)

    def _ending(self, change: TurnCommit, finish: Finish) -> TurnCommit:
        events = change.events if finish.status == "done" else (*change.events, failure_event(finish))
        return replace(change, events=events, rest=finish)

    def _stopping(self, change: TurnCommit, reason: CancelReason, partial: str = "") -> TurnCommit:
        """`change` as the turn's last: what is pending gets a result, and the log says that it was cancelled."""
        left = self.state.then(change.events).pending
        results = self._resulting(left, {call.tool_call_id: self._left(call) for call in left})
        status = cancelled_event(reason, partial, read_through=self.state.heard)
        return replace(
            change,
            events=(*change.events, *results.events, status),
            tool_results=(*change.tool_results, *results.tool_results),
            rest=Finish("cancelled", reason),
        )

    def _left(self, call: ToolCall) -> ToolOutcome:
        row = self.rows.get(call.tool_call_id)
        if row is not None and row.state is ToolCallState.RUNNING and call.tool_call_id not in self.fresh:
            return replace(self._cut_off(call), requests=0)
        return ToolOutcome(ToolStatus.DENIED, error="It was not made: the reply was cancelled before.", requests=0)


def _state_of(error: TurnlineError) -> ModelCallState:
    return ModelCallState.UNKNOWN if error.maybe_done else ModelCallState.FAILED
