"""Tool calls that a person must approve: the approval is requested once, bound to the exact call, and used once."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest

from engine.enums import ApprovalStatus, Effect, EventKind, Source, ToolCallState, ToolStatus
from engine.events import Event, ToolCall, ToolOutcome
from engine.tools.spec import ToolSpec
from engine.turn.commit import Finish, Park, Reserved
from engine.turn.context import TurnContext
from engine.turn.pending_calls import Approval, Pending
from engine.turn.ports import ResumePoint
from engine.turn.tool_intents import approval_hash
from tests.support.fakes import TURN, ListLog, Script, calls, context, customer, run, says

SCHEMA = {"type": "object", "properties": {"cents": {"type": "integer"}}, "required": ["cents"]}
REFUND = ToolSpec(UUID(int=8), "refund", "", SCHEMA, effect=Effect.UNSAFE, approval=True)
LOOKUP = ToolSpec(UUID(int=9), "lookup", "", {"type": "object"}, effect=Effect.PURE)
FIRST = Reserved(0, 0)
WAITS = Park(0.0, refund=True, for_approval=True)


def refund(call_id: str = "c0", cents: object = 500) -> ToolCall:
    return ToolCall(call_id, "refund", {"cents": cents}, f'{{"cents": {cents}}}')


def requested(*some: ToolCall) -> list[Event]:
    """Return the log of a turn whose model has requested these calls."""
    return [
        customer("Refund me", 0),
        *(
            Event(
                EventKind.TOOL_CALL,
                Source.AI_AGENT,
                {"tool_call_id": call.tool_call_id, "tool_name": call.tool_name, "arguments": call.arguments},
                {"step": 0, "read_through": 0, "position": place, "raw_arguments": call.raw_arguments},
                TURN,
                place + 1,
            )
            for place, call in enumerate(some)
        ),
    ]


def awaiting(call: ToolCall, given: TurnContext, decision: ApprovalStatus = ApprovalStatus.PENDING, **fields: object) -> Pending:
    approval = Approval(decision, approval_hash(given, call), **fields)  # type: ignore[arg-type]
    return Pending(f"key of {call.tool_call_id}", ToolCallState.AWAITING_APPROVAL, approval)


async def test_call_needing_approval_parks_the_turn_in_the_commit_that_requests_it():
    log, world = ListLog(customer("Refund me", 0)), Script(calls(refund()))

    assert await run(log, world, context(REFUND), ResumePoint(tuple(log.events), FIRST)) == WAITS

    (commit,) = log.commits
    assert commit.tool_calls[0].approval_hash == approval_hash(context(REFUND), refund())
    assert world.made == []


async def test_other_calls_of_the_reply_are_made_at_once():
    look = ToolCall("c1", "lookup", {}, "{}")
    log = ListLog(customer("Refund me", 0))
    world = Script(calls(refund(), look), tools={"c1": ToolOutcome(ToolStatus.SUCCEEDED, 1)})

    assert await run(log, world, context(REFUND, LOOKUP), ResumePoint(tuple(log.events), FIRST)) == WAITS

    assert [call.tool_call_id for call in world.made] == ["c1"]
    assert [event.content["tool_call_id"] for event in log.commits[-1].events] == ["c1"]


async def test_no_approval_is_requested_for_an_impossible_call():
    log = ListLog(customer("Refund me", 0))
    failed = ToolOutcome(ToolStatus.FAILED, error="cents must be an integer", requests=0)
    world = Script(calls(refund(cents='"much"')), says("Sorry."), tools={"c0": failed})

    assert await run(log, world, context(REFUND), ResumePoint(tuple(log.events), FIRST)) == Finish("done")


async def test_approved_call_is_recorded_as_running_before_it_is_made():
    given = context(REFUND)
    log, world = ListLog(*requested(refund())), Script(says("Done."), tools={"c0": ToolOutcome(ToolStatus.SUCCEEDED, 1)})

    outcome = await run(log, world, given, ResumePoint(tuple(log.events), None, {"c0": awaiting(refund(), given, ApprovalStatus.APPROVED)}))

    assert outcome == Finish("done")
    (start,) = log.commits[0].starts
    assert start.approval_hash == approval_hash(given, refund())
    assert world.tool_keys == [("c0", "key of c0")]


async def test_edited_arguments_are_used_and_shown_to_the_model():
    given = context(REFUND)
    log, world = ListLog(*requested(refund())), Script(says("Done."), tools={"c0": ToolOutcome(ToolStatus.SUCCEEDED, 1)})
    row = awaiting(refund(cents=100), given, ApprovalStatus.APPROVED, edited_arguments={"cents": 100})

    await run(log, world, given, ResumePoint(tuple(log.events), None, {"c0": row}))

    assert world.made[0].arguments == {"cents": 100}
    assert '"cents":100' in world.requests[0].messages[-1].text


@pytest.mark.parametrize(
    ("row", "expected_text"),
    [
        ({"decision": ApprovalStatus.DENIED, "reason": "too much"}, "too much"),
        ({"decision": ApprovalStatus.EXPIRED}, "in time"),
        ({"decision": ApprovalStatus.APPROVED, "used": True}, "used or withdrawn"),
        ({"decision": ApprovalStatus.CANCELLED}, "used or withdrawn"),
        ({"decision": ApprovalStatus.APPROVED, "edited_arguments": {"cents": 999_999}}, "differs from the approved one"),
    ],
)
async def test_denied_call_is_not_made_and_the_model_gets_the_reason(row: dict[str, object], expected_text: str):
    given = context(REFUND)
    log, world = ListLog(*requested(refund())), Script(says("Sorry."))

    await run(log, world, given, ResumePoint(tuple(log.events), None, {"c0": awaiting(refund(), given, **row)}))  # type: ignore[arg-type]

    assert world.made == []
    assert log.commits[0].events[0].content["status"] == "denied"
    assert expected_text in world.requests[0].messages[-1].text


async def test_an_approval_is_bound_to_session_tool_call_and_arguments():
    given = context(REFUND)
    hashes = {
        approval_hash(given, refund()),
        approval_hash(given, refund(cents=501)),
        approval_hash(given, refund("c1")),
        approval_hash(replace(given, session_id=UUID(int=77)), refund()),
        approval_hash(context(replace(REFUND, id=UUID(int=78))), refund()),
    }
    assert len(hashes) == 5


async def test_decided_calls_proceed_while_others_wait():
    given = context(REFUND)
    some = [refund(f"c{n}") for n in range(3)]
    log, world = ListLog(*requested(*some)), Script(tools={"c1": ToolOutcome(ToolStatus.SUCCEEDED, 1)})
    rows = {call.tool_call_id: awaiting(call, given) for call in some}
    rows["c1"] = awaiting(some[1], given, ApprovalStatus.APPROVED)

    assert await run(log, world, given, ResumePoint(tuple(log.events), None, rows)) == WAITS

    assert [call.tool_call_id for call in world.made] == ["c1"]
    assert [event.content["tool_call_id"] for event in log.commits[-1].events] == ["c1"]
