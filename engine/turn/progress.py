"""Everything that a running turn knows: its folded log, and the calls that wait for a result. Immutable; each commit makes a new one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from engine.enums import ModelCallState, ToolCallState
from engine.turn.commit import CommitResult, Reserved, TurnCommit
from engine.turn.context import TurnContext
from engine.turn.pending_calls import Pending
from engine.turn.ports import ResumePoint
from engine.turn.state import TurnState


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of one claim.

    `reserved`: the model call whose ledger row waits for its result. `bound_is_current`: budgets reserve as much as that call may cost.
    `budget_refusal`: why they have no room for it. `rows`: the rows of tool calls without a result, by tool call id; `begun_here` are those
    that this claim started. `failures`: failed model calls in a row.
    """

    state: TurnState
    reserved: Reserved | None
    bound_is_current: bool
    rows: Mapping[str, Pending]
    begun_here: frozenset[str] = frozenset()
    budget_refusal: str | None = None
    failures: int = 0
    budgeted: bool = False

    @classmethod
    def of(cls, context: TurnContext, resume_point: ResumePoint) -> Progress:
        """Return the progress of a turn that was just claimed."""
        return cls(
            state=TurnState.of(context.turn_id, context.opened_at_offset, resume_point.events),
            reserved=resume_point.reserved,
            bound_is_current=not context.budgeted,
            rows=dict(resume_point.pending),
            budgeted=context.budgeted,
        )

    def then(self, commit: TurnCommit, result: CommitResult) -> Progress:
        """Return the progress after `commit`, which the database answered with `result`."""
        progress = replace(self, state=self.state.then((*commit.events, *result.new_messages)))
        return progress._with_model_call(commit, result)._with_tool_calls(commit, cancelled=result.cancel_reason is not None)

    def _with_model_call(self, commit: TurnCommit, result: CommitResult) -> Progress:
        progress = self
        if (settled := commit.model_call) is not None:
            failures = 0 if settled.state is ModelCallState.SETTLED else self.failures + 1
            progress = replace(progress, reserved=None, failures=failures)
        if (reserve := commit.reserve) is not None:
            refused = result.budget_refusal is not None or result.cancel_reason is not None
            progress = replace(
                progress,
                reserved=None if refused and not reserve.again else reserve.call,
                budget_refusal=result.budget_refusal,
                # Messages that arrived with the commit make the call longer than what was reserved for it.
                bound_is_current=not self.budgeted or not result.new_messages,
            )
        return progress

    def _with_tool_calls(self, commit: TurnCommit, *, cancelled: bool) -> Progress:
        rows = dict(self.rows)
        for intent in commit.tool_calls:
            state = ToolCallState.REQUESTED if cancelled else ToolCallState.RUNNING
            if intent.approval_hash is not None:
                state = ToolCallState.AWAITING_APPROVAL
            rows[intent.tool_call_id] = Pending(intent.idempotency_key, state)
        begun = {intent.tool_call_id for intent in commit.tool_calls if rows[intent.tool_call_id].state is ToolCallState.RUNNING}
        if not cancelled:
            for start in commit.starts:
                rows[start.tool_call_id] = replace(rows[start.tool_call_id], state=ToolCallState.RUNNING)
                begun.add(start.tool_call_id)
        return replace(self, rows=rows, begun_here=self.begun_here | begun)
