"""Runs one claimed turn: decide, perform, commit, until the turn finishes or parks."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace

from engine.enums import CancelReason, Effect, FinishReason, ModelCallState, ToolStatus
from engine.errors import Ambiguous, Permanent, Transient, TurnlineError
from engine.events import ModelReply, ToolCall, ToolOutcome
from engine.model.prompt import model_request
from engine.safe_json import clean_text
from engine.sentences import RESULT_LOST
from engine.turn.cancellation import CancelToken, CutOff
from engine.turn.commit import Finish, Outcome, Park, Reserved, TurnCommit
from engine.turn.commit_builder import CommitBuilder
from engine.turn.context import TurnContext
from engine.turn.decide import BeginTools, CallModel, CallTools, Cancel, Decision, ReserveCall, decide
from engine.turn.log_events import reply_events
from engine.turn.ports import OnDelta, Performer, ResumePoint, TurnLog
from engine.turn.progress import Progress
from engine.turn.retry import Jitter, Retry, after_failure


class TurnRunner:
    """Runs one claim of a turn.

    After `slice_s` seconds the turn is parked for no time, so that a long one stays within the limits on a task. A turn that its provider
    keeps waiting fails `patience_s` seconds after it was first claimed. Once `cancel` is requested, calls under way are cut off and the
    turn ends with what was learned so far. `on_delta` receives the text of replies as it is streamed. `clock` returns seconds.
    """

    def __init__(
        self,
        log: TurnLog,
        performer: Performer,
        context: TurnContext,
        resume_point: ResumePoint,
        cancel: CancelToken | None = None,
        *,
        on_delta: OnDelta = lambda text: None,
        slice_s: float = 120.0,
        patience_s: float = 3600.0,
        clock: Callable[[], float] | None = None,
        jitter: Jitter = random.uniform,
    ) -> None:
        self._log, self._performer, self._context, self._on_delta = log, performer, context, on_delta
        self._cancel = cancel or CancelToken()
        self._commits = CommitBuilder(context, performer.bound)
        self._resume_point = resume_point
        self._progress = Progress.of(context, resume_point)
        self._clock, self._jitter = clock or asyncio.get_running_loop().time, jitter
        now = self._clock()
        self._slice_ends_at = now + slice_s
        self._patience_ends_at = now + patience_s - resume_point.elapsed_s
        self._work_ends_at = now + context.limits.wall_clock_s - resume_point.running_s

    async def run(self) -> Outcome:
        """Run the turn until it finishes or parks, and return which.

        Each pass is durable: what was learned is committed together with the intent of the next step, so a dead worker's turn resumes from
        the log and repeats nothing that had finished. Messages that arrive meanwhile are read by the next model call.

        Raises:
            LeaseLost: another worker holds the turn now; nothing of this pass was written.
        """
        while True:
            decision = decide(self._progress, self._context, cancel_reason=self._cancel.reason, out_of_time=self._out_of_time())
            commit = await self._perform(decision)
            result = await self._log.write(commit)
            if result.outcome is not None:  # the database decides it: a turn that was to be done may have been cancelled
                return result.outcome
            if result.cancel_reason is not None:
                self._cancel.request(CancelReason(result.cancel_reason))
            self._progress = self._progress.then(commit, result)

    async def _perform(self, decision: Decision) -> TurnCommit:
        """Carry out `decision` and return the commit of what was learned."""
        match decision:
            case CallModel(call):
                return await self._call_model(call)
            case CallTools():
                return await self._call_tools(decision)
            case ReserveCall(call, again):
                return self._commits.reserving(TurnCommit(), self._progress, call, again=again)
            case BeginTools(starts):
                return TurnCommit(starts=starts)
            case Cancel(reason):
                return self._commits.cancelled(self._commits.unsent(self._progress), self._progress, reason)
            case Finish():
                return self._commits.finished(self._commits.unsent(self._progress), decision)
            case Park():
                return replace(self._commits.unsent(self._progress), outcome=decision)

    async def _call_model(self, call: Reserved) -> TurnCommit:
        sent_at = self._clock()
        request = model_request(self._progress.state, self._context)
        streamed: list[str] = []

        def on_delta(text: str) -> None:
            streamed.append(text)
            self._on_delta(text)

        try:
            reply, cost = await self._cancel.guard(self._performer.call_model(request, on_delta))
        except CutOff:
            reason, partial_text = await self._cancel.wait(), clean_text("".join(streamed))
            usage, cost = self._performer.estimate(request, partial_text)
            cut = ModelReply(partial_text, (), FinishReason.STOP, self._context.model_name, usage)
            commit = self._commits.settled(
                call, ModelCallState.SETTLED, reply=cut, cost=cost, error_class=reason, latency_ms=self._ms_since(sent_at), estimated=True
            )
            return self._commits.cancelled(commit, self._progress, reason, partial_text)
        except (Transient, Ambiguous) as error:
            return await self._after_failure(call, error, sent_at)
        except Permanent as error:
            return self._commits.finished(self._failed(call, error, sent_at), Finish("failed", error.error_class, str(error)))
        commit = self._commits.settled(call, ModelCallState.SETTLED, reply=reply, cost=cost, latency_ms=self._ms_since(sent_at))
        if not reply.tool_calls and not reply.text:
            detail = f"the model answered with nothing (finish reason: {reply.finish_reason})"
            return self._commits.finished(commit, Finish("failed", "EmptyReply", detail))
        state = self._progress.state
        events = reply_events(reply, self._context.turn_id, step=state.step, read_through=state.last_message_offset)
        return self._with_next_intent(replace(commit, events=events))

    async def _after_failure(self, call: Reserved, error: Transient | Ambiguous, sent_at: float) -> TurnCommit:
        commit = self._failed(call, error, sent_at)
        reaction = after_failure(
            error,
            failures=self._progress.failures + 1,
            attempts=self._resume_point.attempts,
            elapsed_s=self._resume_point.elapsed_s,
            patience_left_s=self._patience_ends_at - self._clock(),
            jitter=self._jitter,
        )
        match reaction:
            case Retry(wait_s):
                try:
                    await self._cancel.guard(asyncio.sleep(wait_s))
                except CutOff:
                    return commit
                return self._commits.reserving(commit, self._progress, Reserved(call.step, call.attempt + 1))
            case Park():
                return replace(commit, outcome=reaction)
            case Finish():
                return self._commits.finished(commit, reaction)

    async def _call_tools(self, decision: CallTools) -> TurnCommit:
        outcomes = dict(decision.answers)

        async def call_one(call: ToolCall) -> None:
            outcomes[call.tool_call_id] = await self._call_tool(call, over_limit=call.tool_call_id in decision.over_limit)

        async def call_all() -> None:
            async with asyncio.TaskGroup() as group:
                for call in decision.ready:
                    group.create_task(call_one(call))

        try:
            await self._cancel.guard(call_all())
        except CutOff:
            cut = {call.tool_call_id: self._commits.cut_off(call) for call in decision.ready}
            results = self._commits.results(self._progress, decision.calls, cut | outcomes)
            return self._commits.cancelled(results, self._progress, await self._cancel.wait())
        return self._with_next_intent(self._commits.results(self._progress, decision.calls, outcomes))

    async def _call_tool(self, call: ToolCall, *, over_limit: bool) -> ToolOutcome:
        if over_limit:
            limit = self._context.limits.tool_calls
            return ToolOutcome(ToolStatus.DENIED, error=f"This turn has used up its {limit} tool calls.", requests=0)
        begun = call.tool_call_id not in self._progress.begun_here
        tool = self._context.tool(call.tool_name)
        if begun and (tool is None or tool.effect is Effect.UNSAFE):
            return ToolOutcome(ToolStatus.UNKNOWN, error=RESULT_LOST, requests=0)
        key = self._progress.rows[call.tool_call_id].idempotency_key
        return await self._performer.call_tool(self._context, call, key, begun=begun)

    def _with_next_intent(self, commit: TurnCommit) -> TurnCommit:
        slice_over = self._clock() > self._slice_ends_at
        return self._commits.with_next_intent(commit, self._progress, slice_over=slice_over, out_of_time=self._out_of_time())

    def _failed(self, call: Reserved, error: TurnlineError, sent_at: float) -> TurnCommit:
        state = ModelCallState.UNKNOWN if error.maybe_done else ModelCallState.FAILED
        return self._commits.settled(call, state, error_class=error.error_class, latency_ms=self._ms_since(sent_at))

    def _out_of_time(self) -> bool:
        return self._clock() > self._work_ends_at

    def _ms_since(self, moment: float) -> int:
        return round((self._clock() - moment) * 1000)
