"""Cancelling a running turn: results so far are kept, running calls are cut off and accounted for."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from uuid import UUID

import pytest

from engine.enums import CancelReason, Effect, ModelCallState, ToolCallState, ToolStatus
from engine.events import Event, ToolCall, ToolOutcome
from engine.tools.spec import ToolSpec
from engine.turn.cancellation import CancelToken
from engine.turn.commit import CommitResult, Finish, Park, Reserved, TurnCommit
from engine.turn.pending_calls import Pending
from engine.turn.ports import ResumePoint
from tests.support.fakes import Hanging, ListLog, Script, calls, context, customer, run, says

TOOLS = {
    effect: ToolSpec(UUID(int=20 + number), f"{effect}_tool", "", {"type": "object"}, effect=effect) for number, effect in enumerate(Effect)
}
FIRST = Reserved(0, 0)


class CancellingLog(ListLog):
    """A log whose commits, from the `at`-th on, report that the turn is cancelled; they start no calls then."""

    def __init__(self, *events: Event, at: int, reason: CancelReason) -> None:
        super().__init__(*events)
        self._at, self._reason = at, reason

    async def write(self, commit: TurnCommit) -> CommitResult:
        stops = len(self.commits) >= self._at
        result = await super().write(commit)
        return replace(result, cancel_reason=self._reason if stops else None)


async def cancelled_during(hanging: Hanging, log: ListLog, world: Script, *tools: ToolSpec, reason: CancelReason) -> TurnCommit:
    """Run a turn, cancel it once it waits for `hanging`, and return its last commit."""
    cancel = CancelToken()
    running = asyncio.create_task(run(log, world, context(*tools), ResumePoint(tuple(log.events), FIRST), cancel))
    await asyncio.wait_for(hanging.hangs.wait(), 5)
    cancel.request(reason)
    assert await asyncio.wait_for(running, 5) == Finish("cancelled", reason)
    return log.commits[-1]


async def test_a_model_call_is_cut_off_its_text_kept_and_its_tokens_estimated():
    hanging = Hanging(("The order ", "is"))
    last = await cancelled_during(hanging, ListLog(customer("Paid?", 0)), Script(hanging), reason=CancelReason.CANCELLED)

    (status,) = last.events
    assert (status.content["status"], status.content["error_class"]) == ("cancelled", "Cancelled")
    assert status.content["partial_text"] == "The order is"
    assert status.metadata == {"read_through": 0}
    assert last.model_call is not None
    assert (last.model_call.state, last.model_call.estimated, last.model_call.error_class) == (ModelCallState.SETTLED, True, "Cancelled")
    assert last.model_call.reply is not None
    assert last.model_call.reply.usage is not None
    assert last.model_call.reply.usage.output_tokens == 3
    assert last.model_call.cost.cost_usd is not None


async def test_partial_text_of_a_rolled_back_turn_is_marked():
    hanging = Hanging(("Well",))
    last = await cancelled_during(hanging, ListLog(customer("Paid?", 0)), Script(hanging), reason=CancelReason.ROLLED_BACK)

    assert last.events[-1].content["rolled_back"] is True


@pytest.mark.parametrize(
    ("effect", "status"),
    [(Effect.PURE, "failed"), (Effect.IDEMPOTENT, "unknown"), (Effect.QUERYABLE, "unknown"), (Effect.UNSAFE, "unknown")],
)
async def test_cancelled_tool_call_is_unknown_and_a_finished_one_keeps_its_result(effect: Effect, status: str):
    tool = TOOLS[effect]
    calls_made = [ToolCall("c0", tool.name, {}, "{}"), ToolCall("c1", tool.name, {}, "{}")]
    hanging = Hanging()
    world = Script(calls(*calls_made), tools={"c0": ToolOutcome(ToolStatus.SUCCEEDED, 1), "c1": hanging})

    last = await cancelled_during(hanging, ListLog(customer("Both", 0)), world, tool, reason=CancelReason.CANCELLED)

    assert [(e.content["tool_call_id"], e.content["status"]) for e in last.events[:-1]] == [("c0", "succeeded"), ("c1", status)]
    assert [settled.outcome.status for settled in last.tool_results] == ["succeeded", status]


async def test_cancel_seen_in_a_commit_starts_no_intended_call():
    tool = TOOLS[Effect.UNSAFE]
    log = CancellingLog(customer("Do it", 0), at=0, reason=CancelReason.TAKEN_OVER)
    world = Script(calls(ToolCall("c0", tool.name, {}, "{}")))

    assert await run(log, world, context(tool), ResumePoint(tuple(log.events), FIRST)) == Finish("cancelled", "TakenOver")

    assert world.made == []
    result, status = log.commits[-1].events
    assert result.content["status"] == "denied"
    assert status.content["error_class"] == "TakenOver"


async def test_pausing_a_session_parks_its_turn_at_the_next_commit():
    tool = TOOLS[Effect.IDEMPOTENT]
    log = CancellingLog(customer("Look", 0), at=0, reason=CancelReason.PAUSED)
    world = Script(calls(ToolCall("c0", tool.name, {}, "{}")))

    assert await run(log, world, context(tool), ResumePoint(tuple(log.events), FIRST)) == Park(0.0, refund=True)

    assert world.made == []
    assert log.commits[-1].events == ()


async def test_postponed_call_is_started_by_its_own_commit():
    tool = TOOLS[Effect.UNSAFE]
    log = ListLog(*(await _requested_call(tool)).events)
    world = Script(says("Done."), tools={"c0": ToolOutcome(ToolStatus.SUCCEEDED, 1)})

    outcome = await run(log, world, context(tool), ResumePoint(tuple(log.events), None, {"c0": Pending("key", ToolCallState.REQUESTED)}))

    assert outcome == Finish("done")
    assert [start.tool_call_id for start in log.commits[0].starts] == ["c0"]
    assert world.tool_keys == [("c0", "key")]
    assert world.begun == [], "the call had not been started before"


async def _requested_call(tool: ToolSpec) -> ListLog:
    """Return a log in which the model has requested a call of the tool that is not started yet."""
    log = CancellingLog(customer("Do it", 0), at=0, reason=CancelReason.PAUSED)
    await run(log, Script(calls(ToolCall("c0", tool.name, {}, "{}"))), context(tool), ResumePoint(tuple(log.events), FIRST))
    return log


async def test_a_turn_cancelled_while_it_backs_off_does_not_wait():
    from engine.errors import ProviderDown

    log, cancel = ListLog(customer("Hello", 0)), CancelToken()
    running = asyncio.create_task(
        run(log, Script(ProviderDown("500")), context(), ResumePoint(tuple(log.events), FIRST), cancel, jitter=lambda low, high: 4.0)
    )
    await asyncio.sleep(0)
    cancel.request(CancelReason.INTERRUPTED)

    assert await asyncio.wait_for(running, 2) == Finish("cancelled", "Interrupted")


async def test_a_cancelled_task_leaves_nothing_running():
    hanging = Hanging()
    log = ListLog(customer("Hello", 0))
    before = len(asyncio.all_tasks())
    running = asyncio.create_task(run(log, Script(hanging), context(), ResumePoint(tuple(log.events), FIRST)))
    await asyncio.wait_for(hanging.hangs.wait(), 5)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert len(asyncio.all_tasks()) == before
