"""Intake, claim, write and sweep on a real Postgres."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest

from engine.enums import EventKind, FinishReason, ModelCallState, Source, ToolCallState, ToolStatus
from engine.errors import Conflict, LeaseLost, NotFound, Rejected
from engine.events import Event, ModelReply, ToolOutcome, Usage
from engine.model.request import Cost
from engine.turn.commit import Finish, Outcome, Park, Reserve, Reserved, SettledCall, ToolIntent, ToolSettled, TurnCommit
from engine.turn.context import Limits
from engine.turn.pending_calls import Pending
from store.conversations import intake, session_control, sweep, turns
from store.database import Database
from tests.support.db import rows
from tests.support.factories import Tenant, tenant

FIRST = Reserved(0, 0)
REPLY = ModelReply("Yes.", (), FinishReason.STOP, "gpt-4o-2024", Usage(100, 20, 0, 30, 10), "req-1", 12, 34)
ANSWERED = TurnCommit(
    events=(Event(EventKind.AGENT_MESSAGE, Source.AI_AGENT, {"text": "Yes."}, {"read_through": 0}),),
    model_call=SettledCall(FIRST, ModelCallState.SETTLED, REPLY, Cost(Decimal("0.0004500000"), "test")),
    outcome=Finish("done"),
)


async def claim(database: Database, turn_id: UUID | None, owner: str = "me", lease_s: float = 30.0, attempts: int = 5) -> Any:
    assert turn_id is not None
    return await turns.claim(
        database, turn_id, owner, lease_s=lease_s, max_attempts=attempts, history_limit=400, limits=Limits(), secrets=lambda *_: {}
    )


async def turn_rows(
    database: Database, made: Tenant, columns: str = "status, opened_at_offset, read_through_offset"
) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await rows(database, made, f"SELECT {columns} FROM turns ORDER BY session_id, opened_at_offset")]


async def test_message_opens_turn_and_next_joins_it(database: Database):
    made = await tenant(database)

    first = await intake.accept(database, made.workspace_id, made.session_id, "one")
    second = await intake.accept(database, made.workspace_id, made.session_id, "two")

    assert (first.offset, first.turn_status, first.to_dispatch) == (0, "queued", first.turn_id)
    assert (second.offset, second.turn_id, second.to_dispatch) == (1, first.turn_id, None)


async def test_enqueue_opens_turn_per_message_and_dispatches_first(database: Database):
    made = await tenant(database, strategy="enqueue")

    accepted = [await intake.accept(database, made.workspace_id, made.session_id, text) for text in ("one", "two")]

    assert len({one.turn_id for one in accepted}) == 2
    assert [one.to_dispatch for one in accepted] == [accepted[0].turn_id, None]


async def test_message_key_belongs_to_one_text(database: Database):
    made = await tenant(database)
    first = await intake.accept(database, made.workspace_id, made.session_id, "one", message_key="k")

    again = await intake.accept(database, made.workspace_id, made.session_id, "one", message_key="k")

    assert (again.event_id, again.turn_id, again.repeated, again.to_dispatch) == (first.event_id, first.turn_id, True, None)
    with pytest.raises(Conflict, match="another text"):
        await intake.accept(database, made.workspace_id, made.session_id, "two", message_key="k")
    assert len(await rows(database, made, "SELECT 1 FROM events")) == 1


async def test_fifty_senders_of_one_session_leave_dense_offsets_and_one_event_per_key(database: Database):
    made = await tenant(database)

    await asyncio.gather(
        *(intake.accept(database, made.workspace_id, made.session_id, f"m{n % 25}", message_key=f"k{n % 25}") for n in range(50))
    )

    offsets = [row[0] for row in await rows(database, made, 'SELECT "offset" FROM events ORDER BY 1')]
    assert offsets == list(range(25))
    (session,) = await rows(database, made, "SELECT next_offset, event_count, message_count FROM sessions")
    assert tuple(session) == (25, 25, 25)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"text": "   "}, "not blank"),
        ({"text": 5}, "must be a string"),
        ({"text": "nul \0"}, "U\\+0000"),
        ({"text": "half \ud83d"}, "surrogate"),
        ({"text": "x" * 65_537}, "65536 bytes"),
        ({"text": "a", "message_key": ""}, "1 to 200"),
        ({"text": "a", "metadata": [1]}, "object"),
        ({"text": "a", "metadata": {"n": float("nan")}}, "metadata"),
        ({"text": "a", "strategy": "whenever"}, "coalesce, enqueue"),
    ],
)
async def test_invalid_message_is_rejected_with_reason(database: Database, given: dict[str, Any], says: str):
    made = await tenant(database)

    with pytest.raises(Rejected, match=says):
        await intake.accept(database, made.workspace_id, made.session_id, **given)

    assert await rows(database, made, "SELECT 1 FROM events") == []


async def test_message_to_missing_ended_or_agentless_session_is_refused(database: Database):
    made, other = await tenant(database), await tenant(database)
    with pytest.raises(NotFound):
        await intake.accept(database, made.workspace_id, uuid4(), "one")
    with pytest.raises(NotFound):
        await intake.accept(database, other.workspace_id, made.session_id, "one")
    await rows(database, other, "UPDATE sessions SET status = 'completed' RETURNING 1")
    with pytest.raises(Conflict, match="ended"):
        await intake.accept(database, other.workspace_id, other.session_id, "one")
    await rows(database, made, "UPDATE agents SET status = 'archived' RETURNING 1")
    with pytest.raises(Conflict, match="agent"):
        await intake.accept(database, made.workspace_id, made.session_id, "one")


async def test_refusal_is_recorded_once_without_text(database: Database):
    made = await tenant(database)
    for _ in range(2):
        await intake.record_refusal(database, made.workspace_id, made.session_id, "k", "the secret text", Conflict("another text"))

    (event,) = await rows(database, made, "SELECT kind, content::text || metadata::text FROM events")
    assert event[0] == "status_update"
    assert "secret" not in event[1]


async def test_answered_turn_updates_counters(database: Database):
    made = await tenant(database)
    accepted = await intake.accept(database, made.workspace_id, made.session_id, "Is order 41 paid?")

    running = await claim(database, accepted.turn_id)
    await running.write(ANSWERED)

    assert running.resume_point.reserved == FIRST
    assert [event.content for event in running.resume_point.events] == [{"text": "Is order 41 paid?"}]
    assert await turn_rows(database, made) == [("done", 0, 0)]
    (session,) = await rows(
        database,
        made,
        "SELECT next_offset, event_count, message_count, tokens_used, input_tokens, cached_input_tokens, output_tokens, reasoning_tokens,"
        " cost_usd, unpriced_calls, lease_owner, lease_until, lease_fence FROM sessions",
    )
    assert tuple(session) == (2, 2, 2, 130, 100, 20, 30, 10, Decimal("0.00045"), 0, None, None, 1)
    (call,) = await rows(
        database, made, "SELECT state, model, cost_usd, price_source, ttft_ms, latency_ms, provider_request_id FROM model_calls"
    )
    assert tuple(call) == ("settled", "gpt-4o-2024", Decimal("0.00045"), "test", 12, 34, "req-1")


async def test_repeated_write_is_written_once(database: Database):
    """The commit succeeded and its reply was lost, so the same write is sent again."""
    made = await tenant(database)
    accepted = await intake.accept(database, made.workspace_id, made.session_id, "one")
    running = await claim(database, accepted.turn_id)
    await running.write(ANSWERED)
    running._writes -= 1

    await running.write(ANSWERED)

    assert len(await rows(database, made, "SELECT 1 FROM events")) == 2
    assert (await rows(database, made, "SELECT cost_usd FROM sessions"))[0][0] == Decimal("0.00045")


async def test_repeated_claim_counts_once(database: Database):
    made = await tenant(database)
    accepted = await intake.accept(database, made.workspace_id, made.session_id, "one")

    first, again = await claim(database, accepted.turn_id), await claim(database, accepted.turn_id)

    assert (again.fence, again.attempts, again.resume_point.reserved) == (first.fence, 1, first.resume_point.reserved)
    assert len(await rows(database, made, "SELECT 1 FROM model_calls")) == 1


async def test_repeated_claim_does_not_read_later_messages(database: Database):
    """The first claim's reply was lost. If the reserved call saw the later message, this turn would answer it, and the next turn again."""
    made = await tenant(database)
    accepted = await intake.accept(database, made.workspace_id, made.session_id, "one")
    await claim(database, accepted.turn_id)
    await intake.accept(database, made.workspace_id, made.session_id, "two", strategy="coalesce")

    running = await claim(database, accepted.turn_id)
    assert [event.content["text"] for event in running.resume_point.events] == ["one"]
    await running.write(ANSWERED)

    assert await turn_rows(database, made) == [("done", 0, 0), ("queued", 1, None)]


async def test_repeated_write_does_not_return_later_messages(database: Database):
    made = await tenant(database)
    accepted = await intake.accept(database, made.workspace_id, made.session_id, "one")
    running = await claim(database, accepted.turn_id)
    await intake.accept(database, made.workspace_id, made.session_id, "two")
    again = TurnCommit(
        model_call=SettledCall(FIRST, ModelCallState.FAILED, error_class="Overloaded"),
        reserve=Reserve(Reserved(0, 1), "openai", "gpt-4o", last_message_offset=0),
    )
    first = await running.write(again)
    await intake.accept(database, made.workspace_id, made.session_id, "three")
    running._writes -= 1

    second = await running.write(again)

    assert [event.content["text"] for event in first.new_messages] == [event.content["text"] for event in second.new_messages] == ["two"]
    assert await turn_rows(database, made) == [("running", 0, 1)]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("UPDATE turns SET status = 'done' RETURNING 1", "settled"),
        ("UPDATE turns SET not_before = now() + interval '1 minute' RETURNING 1", "early"),
        ("UPDATE sessions SET mode = 'paused' RETURNING 1", "paused"),
        ("UPDATE sessions SET lease_owner = 'another', lease_until = now() + interval '1 minute' RETURNING 1", "busy"),
    ],
)
async def test_turn_that_may_not_run_is_not_claimed(database: Database, change: str, why: str):
    made = await tenant(database)
    accepted = await intake.accept(database, made.workspace_id, made.session_id, "one")
    await rows(database, made, change)

    assert await claim(database, accepted.turn_id) == turns.NotClaimed(why)
    assert await claim(database, uuid4()) == turns.NotClaimed("no_turn")


async def test_integration_with_lost_key_is_left_out_of_claim(database: Database):
    made = await tenant(database, tools=({"name": "orders_lookup", "integration": {"secrets": {"token": "v1.gone.AAAA"}}},))
    accepted = await intake.accept(database, made.workspace_id, made.session_id, "one")
    assert accepted.turn_id is not None

    def secrets(*_: object) -> dict[str, str]:
        raise Rejected("its key is gone")

    running = await turns.claim(
        database, accepted.turn_id, "me", lease_s=30.0, max_attempts=5, history_limit=400, limits=Limits(), secrets=secrets
    )

    assert not isinstance(running, turns.NotClaimed)
    assert [tool.integrations for tool in running.context.tools] == [()]


async def test_second_turn_waits_for_first(database: Database):
    made = await tenant(database, strategy="enqueue")
    first = await intake.accept(database, made.workspace_id, made.session_id, "one")
    second = await intake.accept(database, made.workspace_id, made.session_id, "two")

    assert await claim(database, second.turn_id) == turns.NotClaimed("not_next")
    running = await claim(database, first.turn_id)
    assert [event.content["text"] for event in running.resume_point.events] == ["one"], "the second turn reads the second message"
    await running.write(ANSWERED)

    assert running.next_turn == second.turn_id
    following = await claim(database, second.turn_id, "other")
    assert [event.content["text"] for event in following.resume_point.events] == ["one", "two", "Yes."]


async def test_a_stale_fence_writes_nothing(database: Database):
    made = await tenant(database)
    accepted = await intake.accept(database, made.workspace_id, made.session_id, "one")
    stale = await claim(database, accepted.turn_id, "frozen", lease_s=0.05)
    await asyncio.sleep(0.1)
    fresh = await claim(database, accepted.turn_id, "awake")

    with pytest.raises(LeaseLost):
        await stale.write(ANSWERED)

    assert fresh.fence == stale.fence + 1
    assert len(await rows(database, made, "SELECT 1 FROM events")) == 1
    await fresh.write(TurnCommit(**{**{f: getattr(ANSWERED, f) for f in ("events", "outcome")}, "model_call": SettledCall(
        fresh.resume_point.reserved, ModelCallState.SETTLED, REPLY, Cost(None, None))}))  # fmt: skip
    with pytest.raises(LeaseLost):
        await stale.write(ANSWERED)
    calls = await rows(database, made, "SELECT attempt, state FROM model_calls ORDER BY attempt")
    assert [tuple(call) for call in calls] == [(0, "unknown"), (1, "settled")]
    (session,) = await rows(database, made, "SELECT unpriced_calls, unknown_calls, cost_usd FROM sessions")
    assert tuple(session) == (1, 1, 0)


async def test_unread_message_opens_next_turn_in_final_commit(database: Database):
    made = await tenant(database)
    accepted = await intake.accept(database, made.workspace_id, made.session_id, "one")
    running = await claim(database, accepted.turn_id)
    late = await intake.accept(database, made.workspace_id, made.session_id, "two")
    assert late.turn_id == accepted.turn_id

    await running.write(ANSWERED)

    assert await turn_rows(database, made) == [("done", 0, 0), ("queued", 1, None)]
    following = await claim(database, running.next_turn)
    assert [event.content["text"] for event in following.resume_point.events] == ["one", "two", "Yes."]


async def test_message_during_step_is_read_by_next_model_call(database: Database):
    made = await tenant(database, tools=({"name": "orders_lookup"},))
    accepted = await intake.accept(database, made.workspace_id, made.session_id, "one")
    running = await claim(database, accepted.turn_id)
    tool = running.context.tools[0]
    called = Event(EventKind.TOOL_CALL, Source.AI_AGENT, {"tool_call_id": "c1", "tool_name": tool.name, "arguments": {}}, {"step": 0})
    await running.write(
        TurnCommit(
            events=(called,),
            model_call=SettledCall(FIRST, ModelCallState.SETTLED, REPLY, Cost(None, None)),
            tool_calls=(ToolIntent("c1", 0, 0, tool.id, tool.name, {"order": 41}, "hash", "key-1"),),
        )
    )
    await intake.accept(database, made.workspace_id, made.session_id, "two")
    outcome = ToolOutcome(ToolStatus.SUCCEEDED, {"paid": True}, latency_ms=7, requests=2)
    result = Event(EventKind.TOOL_RESULT, Source.SYSTEM, {"tool_call_id": "c1", "tool_name": tool.name, "status": "succeeded", "result": 1})

    written = await running.write(
        TurnCommit(
            events=(result,),
            tool_results=(ToolSettled("c1", outcome),),
            reserve=Reserve(Reserved(1, 0), "openai", "gpt-4o", last_message_offset=0),
        )
    )

    assert [event.content["text"] for event in written.new_messages] == ["two"]
    assert written.read_through == 2
    (call,) = await rows(database, made, "SELECT state, attempts, latency_ms, arguments FROM tool_calls")
    assert tuple(call) == ("succeeded", 2, 7, {"order": 41})
    assert await turn_rows(database, made) == [("running", 0, 2)]


async def test_resumed_turn_knows_pending_calls(database: Database):
    made = await tenant(database, tools=({"name": "orders_lookup"},))
    accepted = await intake.accept(database, made.workspace_id, made.session_id, "one")
    running = await claim(database, accepted.turn_id, lease_s=0.05)
    called = Event(EventKind.TOOL_CALL, Source.AI_AGENT, {"tool_call_id": "c1", "tool_name": "orders_lookup", "arguments": {}}, {"step": 0})
    await running.write(
        TurnCommit(
            events=(called,),
            model_call=SettledCall(FIRST, ModelCallState.SETTLED, REPLY, Cost(None, None)),
            tool_calls=(ToolIntent("c1", 0, 0, None, "orders_lookup", {}, "hash", "key-1"),),
        )
    )
    await asyncio.sleep(0.1)

    again = await claim(database, accepted.turn_id, "other")

    assert (again.resume_point.reserved, again.attempts) == (None, 2)
    assert again.resume_point.pending == {"c1": Pending("key-1", ToolCallState.RUNNING)}
    assert [event.kind for event in again.resume_point.events] == [EventKind.CUSTOMER_MESSAGE, EventKind.TOOL_CALL]


async def test_turn_claimed_too_often_is_dead_and_session_continues(database: Database):
    made = await tenant(database)
    accepted = await intake.accept(database, made.workspace_id, made.session_id, "one")
    for owner in ("first", "second"):
        await claim(database, accepted.turn_id, owner, lease_s=0.01, attempts=2)
        await asyncio.sleep(0.05)

    assert await claim(database, accepted.turn_id, "third", attempts=2) == turns.NotClaimed("dead")

    (turn,) = await turn_rows(database, made, "status, error_class, attempts, read_through_offset")
    assert turn == ("dead", "AttemptsSpent", 2, 0)
    kinds = [row[0] for row in await rows(database, made, 'SELECT kind FROM events ORDER BY "offset"')]
    assert kinds == ["customer_message", "status_update"]
    states = {row[0] for row in await rows(database, made, "SELECT state FROM model_calls")}
    assert states == {"unknown"}
    again = await intake.accept(database, made.workspace_id, made.session_id, "two")
    assert again.to_dispatch
    assert not isinstance(await claim(database, again.turn_id), turns.NotClaimed)


async def test_parked_turn_is_early_and_refund_returns_attempt(database: Database, maintenance: Database):
    made = await tenant(database)
    accepted = await intake.accept(database, made.workspace_id, made.session_id, "one")
    running = await claim(database, accepted.turn_id)
    failed = SettledCall(FIRST, ModelCallState.FAILED, error_class="RateLimited")

    await running.write(TurnCommit(model_call=failed, outcome=Park(60.0, True, "RateLimited", "HTTP 429")))

    assert await claim(database, accepted.turn_id) == turns.NotClaimed("early")
    assert await turn_rows(database, made, "status, attempts, error_class") == [("queued", 0, "RateLimited")]
    assert accepted.turn_id not in [turn_id for turn_id, _ in await sweep.due(maintenance, stale_s=0.0)]


async def test_takeover_wins_over_reply(database: Database):
    made = await tenant(database)
    accepted = await intake.accept(database, made.workspace_id, made.session_id, "one")
    running = await claim(database, accepted.turn_id)
    await rows(database, made, "UPDATE sessions SET mode = 'manual' RETURNING 1")

    await running.write(ANSWERED)

    assert await turn_rows(database, made, "status, error_class") == [("cancelled", "TakenOver")]
    kinds = [row[0] for row in await rows(database, made, 'SELECT kind FROM events ORDER BY "offset"')]
    assert kinds == ["customer_message", "status_update"]
    assert (await rows(database, made, "SELECT cost_usd FROM sessions"))[0][0] == Decimal("0.00045"), "the call is paid for all the same"


PARKED = Park(60.0, True, "RateLimited", "HTTP 429")
FOR_APPROVAL = Park(0.0, refund=True, for_approval=True)


@pytest.mark.parametrize(
    ("intended", "meanwhile", "outcome"),
    [
        (Finish("done"), None, Finish("done")),
        (Finish("failed", "BudgetSpent", "no more"), None, Finish("failed", "BudgetSpent", "no more")),
        (PARKED, None, PARKED),
        (Finish("done"), "paused", Park(0.0, refund=True)),
        (Finish("done"), "manual", Finish("cancelled", "TakenOver")),
        (Finish("done"), "cancel", Finish("cancelled", "Cancelled")),
        (Finish("done"), "interrupt", Finish("cancelled", "Interrupted")),
        (Finish("cancelled", "Cancelled"), "interrupt", Finish("cancelled", "Interrupted")),
        (Finish("failed", "BudgetSpent"), "paused", Finish("failed", "BudgetSpent")),
        (PARKED, "paused", PARKED),
        (PARKED, "manual", Finish("cancelled", "TakenOver")),
        (PARKED, "cancel", Finish("cancelled", "Cancelled")),
        (FOR_APPROVAL, "cancel", Finish("cancelled", "Cancelled")),
        (None, None, None),
        (None, "cancel", None),
    ],
)
async def test_write_returns_the_outcome_that_it_wrote(
    database: Database, intended: Outcome | None, meanwhile: str | None, outcome: Outcome | None
):
    made = await tenant(database)
    accepted = await intake.accept(database, made.workspace_id, made.session_id, "one")
    running = await claim(database, accepted.turn_id)
    match meanwhile:
        case "cancel":
            await session_control.cancel_session(database, made.workspace_id, made.session_id, by="ops")
        case "interrupt":
            await intake.accept(database, made.workspace_id, made.session_id, "two", strategy="interrupt")
        case str(mode):
            await session_control.set_mode(database, made.workspace_id, made.session_id, mode, by="ops")
    commit = TurnCommit(events=ANSWERED.events, model_call=ANSWERED.model_call, outcome=intended)

    written = await running.write(commit)

    assert written.outcome == outcome
    (turn,) = await rows(database, made, "SELECT status, error_class FROM turns WHERE id = :id", id=running.turn_id)
    match outcome:
        case None:
            assert tuple(turn) == ("running", None)
        case Finish(status, error_class):
            assert tuple(turn) == (status, error_class)
        case Park(error_class=error_class):
            assert tuple(turn) == ("queued", error_class)
    running._writes -= 1
    assert (await running.write(commit)).outcome == outcome, "the reply to the first write was lost"


async def test_write_returns_whether_the_turn_still_waits_for_an_approval(database: Database):
    made = await tenant(database, tools=({"name": "refund", "effect": "unsafe"},))
    for decided in (False, True):
        accepted = await intake.accept(database, made.workspace_id, made.session_id, "one")
        running = await claim(database, accepted.turn_id)
        key = f"c{accepted.offset}"
        intent = ToolIntent(key, 0, 0, running.context.tools[0].id, "refund", {}, "hash", key, "unsafe", approval_hash="hash")
        await running.write(TurnCommit(events=ANSWERED.events, model_call=ANSWERED.model_call, tool_calls=(intent,)))
        if decided:
            decision = "UPDATE approvals SET status = 'approved', decided_at = now() WHERE tool_call_id = :id RETURNING 1"
            await rows(database, made, decision, id=key)

        written = await running.write(TurnCommit(outcome=FOR_APPROVAL))

        assert written.outcome == Park(0.0, refund=True, for_approval=not decided)
        if not decided:
            await session_control.cancel_session(database, made.workspace_id, made.session_id, by="ops")


async def test_lease_is_renewed_only_with_newest_fence(database: Database):
    made = await tenant(database, sessions=2)
    accepted = [await intake.accept(database, made.workspace_id, session_id, "one") for session_id in made.session_ids]
    mine = await claim(database, accepted[0].turn_id)
    stale = await claim(database, accepted[1].turn_id, "me", lease_s=0.01)
    await asyncio.sleep(0.05)
    await claim(database, accepted[1].turn_id, "another")

    kept = await turns.renew(database, {mine.session_id: mine.fence, stale.session_id: stale.fence}, lease_s=60.0)

    assert kept == {mine.session_id}


async def test_sweep_finds_undispatched_and_abandoned_turns(database: Database, maintenance: Database):
    made = await tenant(database, sessions=5)
    undispatched, lost, left, live, dispatched = [
        (await intake.accept(database, made.workspace_id, session_id, "one")).turn_id for session_id in made.session_ids
    ]
    await claim(database, left, "dead worker", lease_s=0.01)
    await claim(database, live, "live worker", lease_s=60.0)
    await asyncio.sleep(0.05)  # longer than the dead worker's lease
    await rows(database, made, "UPDATE turns SET opened_at = now() - interval '10 seconds' RETURNING 1")
    await rows(database, made, "UPDATE turns SET dispatched_at = now() - interval '15 seconds' WHERE id = :id RETURNING 1", id=lost)
    await rows(database, made, "UPDATE turns SET dispatched_at = now() WHERE id = :id RETURNING 1", id=dispatched)

    found = dict(await sweep.due(maintenance, stale_s=10.0))

    mine = {undispatched, lost, left, live, dispatched}
    assert {turn_id: count for turn_id, count in found.items() if turn_id in mine} == {undispatched: 1, lost: 1, left: 1}
    assert not mine & dict(await sweep.due(maintenance, stale_s=10.0)).keys(), "turns dispatched just now are left alone"


async def test_sweep_role_cannot_read_text(maintenance: Database):
    for table in ("events", "model_calls", "tool_calls", "agents", "workspaces"):
        with pytest.raises(Exception, match="permission denied"):
            await maintenance.rows(f"SELECT * FROM {table}")
    with pytest.raises(Exception, match="permission denied"):
        await maintenance.rows("SELECT title FROM sessions")
