"""Builds the commits of a turn from what was learned. Pure, except that `bound` looks prices up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from engine.enums import CancelReason, Effect, ModelCallState, ToolCallState, ToolStatus
from engine.events import ModelReply, ToolCall, ToolOutcome
from engine.model.prompt import model_request
from engine.turn.commit import Finish, Park, Reserve, Reserved, SettledCall, ToolSettled, TurnCommit
from engine.turn.context import Bound, Cost, ModelRequest, TurnContext
from engine.turn.decide import AskModel, UseTools, next_step
from engine.turn.log_events import cancelled_event, failure_event, result_event
from engine.turn.progress import Progress
from engine.turn.tool_intents import tool_intents


@dataclass(frozen=True, slots=True)
class CommitBuilder:
    """Builds the commits of one turn. `bound` returns the most that a model call can use."""

    context: TurnContext
    bound: Callable[[ModelRequest], Bound]

    def settled(
        self,
        call: Reserved,
        state: ModelCallState,
        *,
        reply: ModelReply | None = None,
        cost: Cost | None = None,
        error_class: str | None = None,
        latency_ms: int | None = None,
        estimated: bool = False,
    ) -> TurnCommit:
        """Return a commit that settles a model call."""
        return TurnCommit(model_call=SettledCall(call, state, reply, cost or Cost(None, None), error_class, latency_ms, estimated))

    def unsent(self, progress: Progress) -> TurnCommit:
        """Return a commit that settles the reserved model call, if any, as not sent."""
        if progress.reserved is None:
            return TurnCommit()
        return self.settled(progress.reserved, ModelCallState.FAILED, error_class="NotSent")

    def reserving(self, commit: TurnCommit, progress: Progress, call: Reserved, *, again: bool = False) -> TurnCommit:
        """Add the intent of a model call to `commit`."""
        state = progress.state.then(commit.events)
        bound = self.bound(model_request(state, self.context)) if self.context.budgeted else None
        offset = progress.state.last_message_offset
        return replace(commit, reserve=Reserve(call, self.context.model_provider, self.context.model_name, offset, bound, again))

    def finished(self, commit: TurnCommit, finish: Finish) -> TurnCommit:
        """Add the end of the turn to `commit`, with a `status_update` for the customer if there is no reply."""
        events = commit.events if finish.status == "done" else (*commit.events, failure_event(finish))
        return replace(commit, events=events, outcome=finish)

    def cancelled(self, commit: TurnCommit, progress: Progress, reason: CancelReason, partial_text: str = "") -> TurnCommit:
        """Make `commit` the turn's last: pending tool calls get a result, and the log records the cancellation."""
        left = progress.state.then(commit.events).pending
        results = self.results(progress, left, {call.tool_call_id: self._outcome_of_pending(progress, call) for call in left})
        status = cancelled_event(reason, partial_text, read_through=progress.state.last_message_offset)
        return replace(
            commit,
            events=(*commit.events, *results.events, status),
            tool_results=(*commit.tool_results, *results.tool_results),
            outcome=Finish("cancelled", reason),
        )

    def results(self, progress: Progress, calls: tuple[ToolCall, ...], outcomes: Mapping[str, ToolOutcome]) -> TurnCommit:
        """Return a commit with the results of those calls that have an outcome, in the order asked."""
        events, settled = [], []
        for call in calls:
            outcome = outcomes.get(call.tool_call_id)
            if outcome is None:
                continue
            row = progress.rows.get(call.tool_call_id)
            edited = row.approval.edited_arguments if row is not None and row.approval is not None else None
            events.append(result_event(call, outcome, edited))
            settled.append(ToolSettled(call.tool_call_id, outcome))
        return TurnCommit(events=tuple(events), tool_results=tuple(settled))

    def with_next_intent(self, commit: TurnCommit, progress: Progress, *, slice_over: bool, out_of_time: bool) -> TurnCommit:
        """Add the intent of the step that follows `commit`, so that both are written in one transaction.

        After the time slice (`slice_over`) the turn is parked instead of asking the model again.
        """
        state = progress.state.then(commit.events)
        match next_step(state, self.context, out_of_time=out_of_time):
            case AskModel(step):
                if slice_over:
                    return replace(commit, outcome=Park(0.0, refund=True))
                return self.reserving(commit, progress, Reserved(step, 0))
            case UseTools(calls, over_limit):
                new = tuple(call for call in calls if call.tool_call_id not in progress.rows)
                intents = tool_intents(new, self.context, state.step - 1, over_limit)
                # If every call needs an approval, the turn waits without a worker.
                all_wait = all(intent.approval_hash is not None for intent in intents)
                return replace(commit, tool_calls=intents, outcome=Park(0.0, refund=True, for_approval=True) if all_wait else None)
            case Finish() as finish:
                return self.finished(commit, finish)

    def cut_off(self, call: ToolCall) -> ToolOutcome:
        """Return the outcome of a tool call that was cancelled while it was under way."""
        tool = self.context.tool(call.tool_name)
        if tool is None or tool.effect is Effect.PURE:
            return ToolOutcome(ToolStatus.FAILED, error="It was cut off: the reply was cancelled.")
        return ToolOutcome(ToolStatus.UNKNOWN, error="It was cut off when the reply was cancelled: it may or may not have happened.")

    def _outcome_of_pending(self, progress: Progress, call: ToolCall) -> ToolOutcome:
        row = progress.rows.get(call.tool_call_id)
        if row is not None and row.state is ToolCallState.RUNNING and call.tool_call_id not in progress.begun_here:
            return replace(self.cut_off(call), requests=0)
        return ToolOutcome(ToolStatus.DENIED, error="It was not made: the reply was cancelled first.", requests=0)
