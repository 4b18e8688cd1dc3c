"""Budgets in the engine: amounts reserved before calls, higher ones after new messages, and the limits of one turn."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from uuid import UUID

import pytest

from engine.enums import Effect, EventKind, ModelCallState, ToolStatus
from engine.errors import TimedOut
from engine.events import Event, ModelReply, ToolCall, ToolOutcome
from engine.tools.spec import ToolSpec
from engine.turn.commit import CommitResult, Finish, Reserved, TurnCommit
from engine.turn.context import Limits
from engine.turn.ports import ResumePoint
from tests.support.fakes import Hanging, ListLog, Script, calls, context, customer, run, says

LOOKUP = ToolSpec(UUID(int=9), "lookup", "", {"type": "object"}, effect=Effect.PURE)
FOUND = ToolOutcome(ToolStatus.SUCCEEDED, {})
OPENING = customer("Is order 41 paid?", 0)


def start(**fields: object) -> ResumePoint:
    return ResumePoint(**({"events": (OPENING,), "reserved": Reserved(0, 0)} | fields))  # type: ignore[arg-type]


class CountingScript(Script):
    """A performer that records the number of commits before each model call."""

    def __init__(self, log: ListLog, *replies: ModelReply | Exception | Hanging, **tools: ToolOutcome) -> None:
        super().__init__(*replies, tools=tools)
        self.log = log
        self.after: list[int] = []

    async def call_model(self, request, on_delta):
        self.after.append(len(self.log.commits))
        return await super().call_model(request, on_delta)


class ExhaustedBudgetLog(ListLog):
    """A log whose budgets are exhausted from the `nth` write on."""

    def __init__(self, nth: int) -> None:
        super().__init__(OPENING)
        self.nth = nth

    async def write(self, commit: TurnCommit) -> CommitResult:
        written = await super().write(commit)
        full = commit.reserve is not None and len(self.commits) > self.nth
        return replace(written, budget_refusal="The session's budget is spent.") if full else written


def reservations(log: ListLog) -> list[tuple[Reserved, bool, bool]]:
    """Return for each reservation the call, whether its row existed already, and whether an amount is reserved."""
    reserves = [commit.reserve for commit in log.commits if commit.reserve is not None]
    return [(reserve.call, reserve.again, reserve.bound is not None) for reserve in reserves]


async def test_budgeted_turn_reserves_the_maximum_before_each_call():
    log = ListLog(OPENING)
    world = CountingScript(log, calls(ToolCall("c1", "lookup", {}, "{}")), says("Yes."), c1=FOUND)

    assert await run(log, world, context(LOOKUP, budgeted=True), start()) == Finish("done")

    assert reservations(log) == [(Reserved(0, 0), True, True), (Reserved(1, 0), False, True)]
    assert world.after == [1, 3], "each call follows the commit that reserves its amount"
    first, second = (commit.reserve.bound for commit in log.commits if commit.reserve is not None)
    assert first is not None
    assert second is not None
    assert second.tokens > first.tokens, "the second call also reads the tool's result"


async def test_without_budgets_nothing_is_reserved_and_no_extra_commit_is_made():
    log = ListLog(OPENING)
    world = CountingScript(log, says("Yes."))

    assert await run(log, world, context(), start()) == Finish("done")
    assert (reservations(log), world.after) == ([], [0])


async def test_new_messages_raise_the_reservation_before_the_call():
    log = ListLog(OPENING, arriving={0: (customer("And order 42, and 43, and all the others?", 0),)})
    world = CountingScript(log, says("All of them."))

    assert await run(log, world, context(budgeted=True), start()) == Finish("done")

    assert reservations(log) == [(Reserved(0, 0), True, True), (Reserved(0, 0), True, True)]
    assert world.after == [2]
    first, second = (commit.reserve.bound for commit in log.commits if commit.reserve is not None)
    assert first is not None
    assert second is not None
    assert second.tokens > first.tokens


async def test_retries_are_reserved_too():
    log = ListLog(OPENING)
    world = CountingScript(log, TimedOut("slow"), says("Yes."))

    assert await run(log, world, context(budgeted=True), start()) == Finish("done")
    assert reservations(log) == [(Reserved(0, 0), True, True), (Reserved(0, 1), False, True)]


@pytest.mark.parametrize("nth", [0, 2])
async def test_exhausted_budget_fails_the_turn_without_a_call(nth: int):
    log = ExhaustedBudgetLog(nth)
    world = CountingScript(log, calls(ToolCall("c1", "lookup", {}, "{}")), says("Never."), c1=FOUND)

    outcome = await run(log, world, context(LOOKUP, budgeted=True), start())

    assert outcome == Finish("failed", "BudgetSpent", "The session's budget is spent.")
    assert len(world.after) == nth / 2
    settled = log.commits[-1].model_call
    if nth == 0:  # the claim had reserved the call
        assert settled is not None
        assert (settled.state, settled.error_class) == (ModelCallState.FAILED, "NotSent")
    else:
        assert settled is None, "its row was never written"
    assert last_status(log) == ["failed", "BudgetSpent", "a limit on what may be spent"]


def last_status(log: ListLog) -> list[str]:
    """Return the status, the error class and the sentence of the last event, as a customer's client shows them."""
    event: Event = log.events[-1]
    assert event.kind is EventKind.STATUS_UPDATE
    sentence = "a limit on what may be spent"
    assert sentence in event.content["text"]
    return [event.content["status"], event.content["error_class"], sentence]


@pytest.mark.parametrize(
    ("limits", "fields", "sentence", "requests"),
    [
        (Limits(model_calls=2), {}, "no reply after 2 model calls, the limit of one turn", 2),
        (Limits(steps=4), {}, "no reply after 4 steps (model calls and tool calls), the limit of one turn", 2),
        (Limits(wall_clock_s=60), {"running_s": 61.0}, "no reply after 60 s of work, the limit of one turn", 0),
    ],
)
async def test_each_turn_limit_fails_the_turn_with_its_message(limits: Limits, fields: dict[str, float], sentence: str, requests: int):
    log = ListLog(OPENING)
    forever = [calls(ToolCall(f"c{number}", "lookup", {}, "{}")) for number in range(9)]
    world = Script(*forever, tools={f"c{number}": FOUND for number in range(9)})

    outcome = await run(log, world, context(LOOKUP, limits=limits), start(**fields))

    assert outcome == Finish("failed", "BudgetSpent", sentence)
    assert len(world.requests) == requests
    assert last_status(log)[:2] == ["failed", "BudgetSpent"]


async def test_tool_calls_over_the_limit_are_denied_and_the_model_may_still_answer():
    replies = [calls(ToolCall(f"c{number}", "lookup", {}, "{}")) for number in range(3)]
    world = Script(*replies, says("That is all I found."), tools={f"c{number}": FOUND for number in range(3)})
    log = ListLog(OPENING)

    assert await run(log, world, context(LOOKUP, limits=Limits(tool_calls=2)), start()) == Finish("done")

    assert [call.tool_call_id for call in world.made] == ["c0", "c1"]
    assert "used up its 2 tool calls" in world.requests[-1].messages[-1].text


async def test_turn_deadline_is_checked_between_calls_only(monkeypatch: pytest.MonkeyPatch):
    """The reply with the tool calls came too late for another model call: their results are kept, and the turn ends."""
    log = ListLog(OPENING)
    world = Script(calls(ToolCall("c1", "lookup", {}, "{}")), tools={"c1": FOUND})
    late = context(LOOKUP, limits=Limits(wall_clock_s=0.05))

    async def slow(*args: object, **named: object) -> ToolOutcome:
        await asyncio.sleep(0.1)
        return FOUND

    monkeypatch.setattr(world, "call_tool", slow)

    outcome = await run(log, world, late, start())

    assert isinstance(outcome, Finish)
    assert outcome.error_detail == "no reply after 0 s of work, the limit of one turn"
    assert log.kinds() == ["customer_message", "tool_call", "tool_result", "status_update"]
