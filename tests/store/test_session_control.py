"""Cancelling and switching modes while a worker writes: the effect on the worker's next commit."""

from __future__ import annotations

from typing import Any

import pytest

from engine.enums import EventKind, ModelCallState, Source
from engine.events import Event
from engine.model.request import Cost
from engine.sentences import with_sentences
from engine.turn.commit import Park, SettledCall, ToolIntent, TurnCommit
from store.conversations import intake, session_control, turns
from store.database import Database
from tests.support.claims import ANSWERED, FIRST, REPLY, claimed
from tests.support.db import rows
from tests.support.factories import Tenant, tenant

CALLED = Event(EventKind.TOOL_CALL, Source.AI_AGENT, {"tool_call_id": "c1", "tool_name": "refund", "arguments": {}}, {"step": 0})
INTENT = ToolIntent("c1", 0, 0, None, "refund", {}, "hash", "key-1", "unsafe", approval_hash="hash")
FOR_APPROVAL = TurnCommit(
    events=(CALLED,),
    model_call=SettledCall(FIRST, ModelCallState.SETTLED, REPLY, Cost(None, None)),
    tool_calls=(INTENT,),
    outcome=Park(0.0, refund=True, for_approval=True),
)
FOR_A_WHILE = TurnCommit(
    model_call=SettledCall(FIRST, ModelCallState.FAILED, error_class="RateLimited"), outcome=Park(60.0, True, "RateLimited")
)
AT_ONCE = TurnCommit(model_call=SettledCall(FIRST, ModelCallState.UNKNOWN, error_class="ReplyLost"), outcome=Park(0.0, refund=True))


async def claimed_turn(database: Database) -> tuple[Tenant, turns.Claim]:
    made = await tenant(database)
    accepted = await intake.accept(database, made.workspace_id, made.session_id, "one")
    return made, await claimed(database, accepted.turn_id)


async def last(database: Database, made: Tenant) -> Any:
    (event,) = await rows(database, made, 'SELECT kind, content, metadata FROM events ORDER BY "offset" DESC LIMIT 1')
    return event


@pytest.mark.parametrize("commit", [FOR_APPROVAL, FOR_A_WHILE, AT_ONCE], ids=["approval", "wait", "released"])
@pytest.mark.parametrize("action", ["cancel", "manual", "interrupt"])
async def test_cancelled_turn_ends_instead_of_parking(database: Database, commit: TurnCommit, action: str):
    """The worker parked the turn before it noticed the cancellation: the turn ends at once, and its approvals are cancelled."""
    made, running = await claimed_turn(database)
    following = None
    if action == "cancel":
        assert (await session_control.cancel_turn(database, made.workspace_id, running.turn_id, by="ops")).status == "cancelling"
    elif action == "manual":
        await session_control.set_mode(database, made.workspace_id, made.session_id, "manual", by="ops")
    else:
        following = (await intake.accept(database, made.workspace_id, made.session_id, "two", strategy="interrupt")).turn_id

    await running.write(commit)

    (turn,) = await rows(database, made, "SELECT status, error_class, settled_at IS NOT NULL FROM turns WHERE id = :id", id=running.turn_id)
    why = {"cancel": "Cancelled", "manual": "TakenOver", "interrupt": "Interrupted"}[action]
    assert tuple(turn) == ("cancelled", why, True)
    event = await last(database, made)
    assert (event.kind, event.content["status"], event.content["error_class"]) == ("status_update", "cancelled", why)
    assert running.next_turn == following
    (session,) = await rows(database, made, "SELECT lease_owner, next_offset - 1 FROM sessions")
    assert tuple(session) == (None, running.last_offset)
    assert [row[0] for row in await rows(database, made, "SELECT state FROM tool_calls")] == (["denied"] if commit.tool_calls else [])
    assert [row[0] for row in await rows(database, made, "SELECT status FROM approvals")] == (["cancelled"] if commit.tool_calls else [])


async def test_reply_cancelled_before_commit_is_kept_as_partial_text(database: Database):
    made, running = await claimed_turn(database)
    await session_control.cancel_session(database, made.workspace_id, made.session_id, by="ops")

    await running.write(ANSWERED)

    event = await last(database, made)
    assert with_sentences(event.content) == {
        "status": "cancelled",
        "error_class": "Cancelled",
        "text": "The reply was cancelled.",
        "by": "ops",
        "partial_text": "Yes.",
    }
    assert event.metadata == {"read_through": 0}


async def test_takeover_drops_reply_and_pause_parks_turn(database: Database):
    made, running = await claimed_turn(database)
    await session_control.set_mode(database, made.workspace_id, made.session_id, "paused", by="ops")

    await running.write(ANSWERED)

    assert tuple((await rows(database, made, "SELECT status, attempts FROM turns"))[0]) == ("queued", 0)
    back = await session_control.set_mode(database, made.workspace_id, made.session_id, "auto", by="ops")
    assert back.to_dispatch == running.turn_id
    again = await claimed(database, running.turn_id, "other")
    await session_control.set_mode(database, made.workspace_id, made.session_id, "manual", by="ops")
    reserved = again.resume_point.reserved
    assert reserved is not None

    await again.write(
        TurnCommit(events=ANSWERED.events, model_call=SettledCall(reserved, ModelCallState.SETTLED, REPLY), outcome=ANSWERED.outcome)
    )

    event = await last(database, made)
    assert "partial_text" not in event.content, "the person's replies are not preceded by the agent's discarded text"
    assert [row[0] for row in await rows(database, made, "SELECT kind FROM events WHERE kind = 'agent_message'")] == []


@pytest.mark.parametrize("action", ["cancel", "manual"])
async def test_cancelling_queued_turn_keeps_running_turns_lease(database: Database, action: str):
    """A queued turn of the session ends at once; the lease belongs to the turn before it."""
    made = await tenant(database, strategy="enqueue")
    first, second = [await intake.accept(database, made.workspace_id, made.session_id, text) for text in ("one", "two")]
    running = await claimed(database, first.turn_id)
    assert second.turn_id is not None

    if action == "cancel":
        assert (await session_control.cancel_turn(database, made.workspace_id, second.turn_id, by="ops")).to_dispatch is None
    else:
        await session_control.set_mode(database, made.workspace_id, made.session_id, "manual", by="ops")

    assert [row[0] for row in await rows(database, made, "SELECT lease_owner FROM sessions")] == ["me"]
    await running.write(ANSWERED)
    statuses = [row[0] for row in await rows(database, made, "SELECT status FROM turns ORDER BY opened_at_offset")]
    assert statuses == ["done" if action == "cancel" else "cancelled", "cancelled"]
