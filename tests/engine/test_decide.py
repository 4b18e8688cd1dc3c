"""The next step of a turn, as a table: no log, no performer, no clock."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest

from engine.enums import ApprovalStatus, CancelReason, Effect, EventKind, Source, ToolCallState
from engine.events import Event, ToolCall
from engine.tools.spec import ToolSpec
from engine.turn.commit import Finish, Park, Reserved, ToolStart
from engine.turn.context import Limits
from engine.turn.decide import BeginTools, CallModel, CallTools, Cancel, Decision, ReserveCall, decide
from engine.turn.pending_calls import Approval, Pending
from engine.turn.ports import ResumePoint
from engine.turn.progress import Progress
from engine.turn.tool_intents import approval_hash
from tests.support.fakes import TURN, context, customer

TOOL = ToolSpec(UUID(int=9), "orders_lookup", "", {"type": "object"}, effect=Effect.IDEMPOTENT)
CONTEXT = context(TOOL)
CALL = ToolCall("c1", "orders_lookup", {"order": 41}, '{"order": 41}')
FIRST = Reserved(0, 0)
CALLED = Event(
    EventKind.TOOL_CALL,
    Source.AI_AGENT,
    {"tool_call_id": "c1", "tool_name": "orders_lookup", "arguments": {"order": 41}},
    {"step": 0, "read_through": 0, "position": 0, "raw_arguments": '{"order": 41}'},
    TURN,
    1,
)
REPLIED = Event(EventKind.AGENT_MESSAGE, Source.AI_AGENT, {"text": "Yes."}, {"step": 0, "read_through": 0}, TURN, 1)
HASH = approval_hash(CONTEXT, CALL)


def progress(*events: Event, reserved: Reserved | None = None, pending: Pending | None = None) -> Progress:
    rows = {"c1": pending} if pending else {}
    return Progress.of(CONTEXT, ResumePoint((customer("Is order 41 paid?", 0), *events), reserved, rows))


def pending(state: ToolCallState, decision: ApprovalStatus | None = None, hashed: str = HASH, *, used: bool = False) -> Pending:
    return Pending("key", state, Approval(decision, hashed, used=used) if decision else None)


REQUESTED, AWAITING, RUNNING = ToolCallState.REQUESTED, ToolCallState.AWAITING_APPROVAL, ToolCallState.RUNNING
MAKE_CALL = CallTools((CALL,), (CALL,))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (progress(reserved=FIRST), CallModel(FIRST)),
        (progress(), ReserveCall(FIRST)),
        (replace(progress(reserved=FIRST), bound_is_current=False), ReserveCall(FIRST, again=True)),
        (replace(progress(reserved=FIRST), budget_refusal="no room"), Finish("failed", "BudgetSpent", "no room")),
        (progress(REPLIED), Finish("done")),
        (progress(CALLED), MAKE_CALL),
        (progress(CALLED, pending=pending(RUNNING)), MAKE_CALL),
        (progress(CALLED, pending=pending(REQUESTED)), BeginTools((ToolStart("c1"),))),
        (progress(CALLED, pending=pending(AWAITING)), Park(0.0, refund=True, for_approval=True)),
        (progress(CALLED, pending=pending(AWAITING, ApprovalStatus.PENDING)), Park(0.0, refund=True, for_approval=True)),
        (progress(CALLED, pending=pending(AWAITING, ApprovalStatus.APPROVED)), BeginTools((ToolStart("c1", HASH),))),
        (progress(CALLED, pending=pending(RUNNING, ApprovalStatus.APPROVED)), MAKE_CALL),
    ],
)
def test_next_step(found: Progress, expected: Decision):
    assert decide(found, CONTEXT, cancel_reason=None, out_of_time=False) == expected


@pytest.mark.parametrize(
    ("row", "error"),
    [
        (pending(AWAITING, ApprovalStatus.DENIED), "denied"),
        (pending(AWAITING, ApprovalStatus.EXPIRED), "in time"),
        (pending(AWAITING, ApprovalStatus.CANCELLED), "withdrawn"),
        (pending(AWAITING, ApprovalStatus.APPROVED, used=True), "used"),
        (pending(AWAITING, ApprovalStatus.APPROVED, hashed="another call"), "differs from the approved one"),
    ],
)
def test_call_that_may_not_be_made_is_answered_without_being_made(row: Pending, error: str):
    decision = decide(progress(CALLED, pending=row), CONTEXT, cancel_reason=None, out_of_time=False)

    assert isinstance(decision, CallTools)
    assert decision.ready == ()
    assert error in (decision.answers["c1"].error or "")


@pytest.mark.parametrize("found", [progress(reserved=FIRST), progress(CALLED), progress(REPLIED)])
@pytest.mark.parametrize("reason", list(CancelReason))
def test_cancellation_precedes_every_step(found: Progress, reason: CancelReason):
    expected = Park(0.0, refund=True) if reason is CancelReason.PAUSED else Cancel(reason)
    assert decide(found, CONTEXT, cancel_reason=reason, out_of_time=False) == expected


@pytest.mark.parametrize(
    ("limits", "out_of_time", "detail"),
    [
        (Limits(model_calls=0), False, "no reply after 0 model calls"),
        (Limits(steps=0), False, "no reply after 0 steps"),
        (Limits(wall_clock_s=60), True, "no reply after 60 s of work"),
    ],
)
def test_limit_of_a_turn_ends_it_instead_of_a_model_call(limits: Limits, out_of_time: bool, detail: str):
    decision = decide(progress(reserved=FIRST), replace(CONTEXT, limits=limits), cancel_reason=None, out_of_time=out_of_time)

    assert isinstance(decision, Finish)
    assert (decision.status, decision.error_class) == ("failed", "BudgetSpent")
    assert detail in (decision.error_detail or "")


def test_calls_over_the_limit_are_marked():
    decision = decide(progress(CALLED), replace(CONTEXT, limits=Limits(tool_calls=0)), cancel_reason=None, out_of_time=False)
    assert isinstance(decision, CallTools)
    assert decision.over_limit == frozenset({"c1"})
