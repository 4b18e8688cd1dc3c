"""The turn runner, with a list as its log and a scripted performer."""

from __future__ import annotations

from uuid import UUID

import pytest

from engine.enums import Effect, EventKind, FinishReason, ModelCallState, Role, Source, ToolCallState, ToolStatus
from engine.errors import LeaseLost, ProviderDown, RateLimited, Rejected, ReplyLost, TimedOut, Unreachable
from engine.events import Event, ModelReply, ToolCall, ToolOutcome
from engine.tools.spec import ToolSpec
from engine.turn.commit import Finish, Park, Reserved
from engine.turn.context import Limits
from engine.turn.pending_calls import Pending
from engine.turn.ports import ResumePoint
from tests.support.fakes import TURN, ListLog, Script, calls, context, customer, run, says

LOOKUP = ToolSpec(UUID(int=9), "orders_lookup", "", {"type": "object"}, effect=Effect.IDEMPOTENT)
REFUND = ToolSpec(UUID(int=8), "refund", "", {"type": "object"}, effect=Effect.UNSAFE)
FIRST = Reserved(0, 0)


def start(*events: Event, **fields: object) -> ResumePoint:
    return ResumePoint(**({"events": events, "reserved": FIRST} | fields))  # type: ignore[arg-type]


async def test_a_message_is_answered_in_one_commit():
    log, world = ListLog(), Script(says("Yes."))

    assert await run(log, world, context(), start(customer("Is order 41 paid?", 0))) == Finish("done")

    assert log.kinds() == ["agent_message"]
    (commit,) = log.commits
    assert commit.outcome == Finish("done")
    assert commit.model_call is not None
    assert commit.model_call.state is ModelCallState.SETTLED
    assert [(m.role, m.text) for m in world.requests[0].messages] == [(Role.SYSTEM, "Be brief."), (Role.USER, "Is order 41 paid?")]


async def test_a_tool_result_is_answered_before_the_turn_finishes():
    call = ToolCall("c1", "orders_lookup", {"order": 41}, '{"order": 41}')
    log = ListLog(customer("Is order 41 paid?", 0))
    world = Script(calls(call, text="Let me look."), says("Yes."), tools={"c1": ToolOutcome(ToolStatus.SUCCEEDED, {"paid": True})})

    assert await run(log, world, context(LOOKUP), start(*log.events)) == Finish("done")

    assert log.kinds() == ["customer_message", "tool_call", "tool_result", "agent_message"]
    requested, used, answered = log.commits
    assert [intent.tool_call_id for intent in requested.tool_calls] == ["c1"], "the intent is in the commit of the reply with the call"
    assert requested.tool_calls[0].tool_id == LOOKUP.id
    assert used.reserve is not None
    assert used.reserve.call == Reserved(1, 0)
    assert answered.outcome == Finish("done")
    assert world.tool_keys == [("c1", requested.tool_calls[0].idempotency_key)]
    assistant, tool = world.requests[1].messages[2:]
    assert (assistant.text, assistant.tool_calls[0].arguments) == ("Let me look.", '{"order": 41}')
    assert (tool.role, tool.text, tool.tool_call_id) == (Role.TOOL, '{"paid":true}', "c1")


async def test_parallel_calls_get_their_results_in_request_order():
    tool_calls = [ToolCall(f"c{n}", "orders_lookup", {"order": n}, "{}") for n in range(3)]
    outcomes = {call.tool_call_id: ToolOutcome(ToolStatus.SUCCEEDED, call.arguments) for call in tool_calls}
    log, world = ListLog(), Script(calls(*tool_calls), says("All."), tools=outcomes)

    await run(log, world, context(LOOKUP), start(customer("All of them", 0)))

    results = [event.content["tool_call_id"] for event in log.events if event.kind is EventKind.TOOL_RESULT]
    assert results == ["c0", "c1", "c2"]
    assert len({intent.idempotency_key for intent in log.commits[0].tool_calls}) == 3
    assert [len(message.tool_calls) for message in world.requests[1].messages if message.tool_calls] == [3]


async def test_message_arriving_during_a_step_is_read_by_the_next_step():
    call = ToolCall("c1", "orders_lookup", {}, "{}")
    log = ListLog(customer("Is it paid?", 0), arriving={1: [customer("And shipped?", -1)]})
    world = Script(calls(call), says("Both."), tools={"c1": ToolOutcome(ToolStatus.SUCCEEDED, {})})

    await run(log, world, context(LOOKUP), start(*log.events))

    assert log.kinds() == ["customer_message", "tool_call", "customer_message", "tool_result", "agent_message"]
    roles = [message.role for message in world.requests[1].messages]
    assert roles == [Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.TOOL, Role.USER]
    assert log.events[-1].metadata["read_through"] == 2


@pytest.mark.parametrize("effect", [Effect.PURE, Effect.IDEMPOTENT, Effect.QUERYABLE])
async def test_resumed_turn_repeats_an_idempotent_call_under_its_key_without_another_model_call(effect: Effect):
    called = Event(EventKind.TOOL_CALL, Source.AI_AGENT, {"tool_call_id": "c1", "tool_name": "orders_lookup", "arguments": {}},
                   {"step": 0, "read_through": 0, "position": 0, "raw_arguments": "{}"}, TURN, 1)  # fmt: skip
    log = ListLog(customer("Is it paid?", 0), called)
    world = Script(says("Yes."), tools={"c1": ToolOutcome(ToolStatus.SUCCEEDED, {})})

    await run(
        log, world, context(LOOKUP), start(*log.events, reserved=None, pending={"c1": Pending("the key of its row", ToolCallState.RUNNING)})
    )

    assert world.tool_keys == [("c1", "the key of its row")]
    assert world.begun == ["c1"], "a call that an earlier worker started is marked as started"
    assert len(world.requests) == 1


async def test_a_resumed_unsafe_call_is_unknown_and_not_made_again():
    called = Event(EventKind.TOOL_CALL, Source.AI_AGENT, {"tool_call_id": "c1", "tool_name": "refund", "arguments": {}},
                   {"step": 0, "read_through": 0, "position": 0, "raw_arguments": "{}"}, TURN, 1)  # fmt: skip
    log, world = ListLog(customer("Refund me", 0), called), Script(says("I am not sure."))

    await run(log, world, context(REFUND), start(*log.events, reserved=None, pending={"c1": Pending("key", ToolCallState.RUNNING)}))

    assert world.tool_keys == []
    assert log.events[2].content["status"] == "unknown"
    assert "may or may not have happened" in world.requests[0].messages[-1].text


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (ProviderDown("HTTP 500"), ModelCallState.FAILED),
        (RateLimited("HTTP 429", retry_after_s=0.0), ModelCallState.FAILED),
        (ReplyLost("reset"), ModelCallState.UNKNOWN),
        (TimedOut("120 s"), ModelCallState.UNKNOWN),
    ],
)
async def test_transient_failure_is_retried_with_one_ledger_row_per_attempt(error: Exception, state: ModelCallState):
    log, world = ListLog(), Script(error, says("Yes."))

    assert await run(log, world, context(), start(customer("Hello", 0))) == Finish("done")

    failed, answered = log.commits
    assert failed.model_call is not None
    assert (failed.model_call.call, failed.model_call.state) == (FIRST, state)
    assert failed.reserve is not None
    assert failed.reserve.call == Reserved(0, 1)
    assert answered.model_call is not None
    assert answered.model_call.call == Reserved(0, 1)


async def test_long_wait_requested_by_the_provider_parks_the_turn_without_costing_an_attempt():
    log = ListLog()
    outcome = await run(log, Script(RateLimited("HTTP 429", retry_after_s=40.0)), context(), start(customer("Hello", 0)))

    assert isinstance(outcome, Park)
    assert (outcome.wait_s, outcome.refund) == (40.0, True)
    assert log.events == []


async def test_three_failures_park_the_turn_at_the_cost_of_an_attempt():
    outcome = await run(ListLog(), Script(*[ProviderDown("HTTP 503")] * 3), context(), start(customer("Hello", 0)))

    assert isinstance(outcome, Park)
    assert not outcome.refund


async def test_unreachable_provider_parks_the_turn_without_costing_an_attempt():
    outcome = await run(ListLog(), Script(*[Unreachable("no connection")] * 3), context(), start(customer("Hello", 0)))

    assert isinstance(outcome, Park)
    assert outcome.refund


async def test_wait_beyond_the_deadline_fails_the_turn_with_a_message():
    log = ListLog()
    outcome = await run(log, Script(RateLimited("HTTP 429", retry_after_s=86_400.0)), context(), start(customer("Hello", 0)))

    assert isinstance(outcome, Finish)
    assert (outcome.status, outcome.error_class) == ("failed", "RateLimited")
    assert log.kinds() == ["status_update"]


async def test_a_refusal_fails_the_turn_and_settles_its_call():
    log = ListLog()
    outcome = await run(log, Script(Rejected("HTTP 401")), context(), start(customer("Hello", 0)))

    assert outcome == Finish("failed", "Rejected", "HTTP 401")
    assert log.kinds() == ["status_update"]
    assert "401" not in str(log.events[0].content), "the customer sees only that it failed, the operator sees why"
    assert log.commits[0].model_call is not None
    assert log.commits[0].model_call.state is ModelCallState.FAILED


async def test_an_empty_reply_fails_the_turn_and_is_paid_for():
    log = ListLog()
    outcome = await run(log, Script(ModelReply("", (), FinishReason.STOP, "gpt-4")), context(), start(customer("Hello", 0)))

    assert isinstance(outcome, Finish)
    assert outcome.error_class == "EmptyReply"
    assert log.commits[0].model_call is not None
    assert log.commits[0].model_call.state is ModelCallState.SETTLED


async def test_a_model_that_calls_for_ever_is_stopped():
    forever = [calls(ToolCall(f"c{n}", "orders_lookup", {}, "{}")) for n in range(10)]
    world = Script(*forever, tools={f"c{n}": ToolOutcome(ToolStatus.SUCCEEDED, {}) for n in range(10)})
    log = ListLog()

    outcome = await run(log, world, context(LOOKUP, limits=Limits(model_calls=3)), start(customer("Loop", 0)))

    assert isinstance(outcome, Finish)
    assert (outcome.status, outcome.error_class, len(world.requests)) == ("failed", "BudgetSpent", 3)


async def test_calls_over_the_limit_are_denied_and_still_answered():
    tool_calls = [ToolCall(f"c{n}", "orders_lookup", {}, "{}") for n in range(5)]
    world = Script(calls(*tool_calls), says("Enough."), tools={f"c{n}": ToolOutcome(ToolStatus.SUCCEEDED, {}) for n in range(5)})
    log = ListLog()

    await run(log, world, context(LOOKUP, limits=Limits(tool_calls=2)), start(customer("Many", 0)))

    statuses = [event.content["status"] for event in log.events if event.kind is EventKind.TOOL_RESULT]
    assert statuses == ["succeeded", "succeeded", "denied", "denied", "denied"]
    assert len(world.tool_keys) == 2


async def test_turn_longer_than_its_slice_is_parked_between_steps():
    call = ToolCall("c1", "orders_lookup", {}, "{}")
    world = Script(calls(call), tools={"c1": ToolOutcome(ToolStatus.SUCCEEDED, {})})

    outcome = await run(ListLog(), world, context(LOOKUP), start(customer("Hello", 0)), slice_s=-1.0)

    assert outcome == Park(0.0, refund=True)


async def test_a_lost_lease_stops_the_turn():
    with pytest.raises(LeaseLost):
        await run(ListLog(lost_at=0), Script(says("Yes.")), context(), start(customer("Hello", 0)))


async def test_unneeded_reserved_call_is_settled_as_never_sent():
    answered = Event(EventKind.AGENT_MESSAGE, Source.AI_AGENT, {"text": "Yes."}, {"read_through": 0, "step": 0}, TURN, 1)
    log, world = ListLog(), Script()

    assert await run(log, world, context(), start(customer("Hello", 0), answered)) == Finish("done")

    assert log.commits[0].model_call is not None
    assert (log.commits[0].model_call.state, log.commits[0].model_call.error_class) == (ModelCallState.FAILED, "NotSent")
