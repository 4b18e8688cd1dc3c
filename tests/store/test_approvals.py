"""Approvals on a real Postgres: a turn parks for them; each is decided once, bound to the shown call, and used once."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from engine.enums import ToolStatus
from engine.errors import Conflict, NotFound, Rejected
from engine.events import ToolOutcome
from engine.turn.commit import Finish, Park, ToolStart, TurnCommit
from engine.turn.runner import TurnRunner
from store.conversations import approvals, intake, sweep, turns
from store.database import Database
from tests.support.db import rows
from tests.support.engine_runs import LOOKUP, REFUND, claimed, run_turn, tool_call
from tests.support.factories import Tenant, tenant
from tests.support.fakes import Script, calls, says

PAID = {f"c{number}": ToolOutcome(ToolStatus.SUCCEEDED, {"paid": number}) for number in range(9)}
PARKED = Park(0.0, refund=True, for_approval=True)


async def parked(database: Database, *requested: Any, approval_s: float = 600.0, **fields: Any) -> tuple[Tenant, UUID, list[UUID]]:
    """Make a turn that waits for approvals of `requested` calls; return its tenant, its id, and the approvals' ids in order."""
    made = await tenant(database, tools=(REFUND, LOOKUP), **fields)
    accepted = await intake.accept(database, made.workspace_id, made.session_id, "Refund order 1, please.")
    assert accepted.turn_id is not None
    world = Script(calls(*(requested or (tool_call(1),))), tools=PAID)
    assert await run_turn(database, accepted.turn_id, world, approval_s=approval_s) == PARKED
    return made, accepted.turn_id, [row[0] for row in await rows(database, made, "SELECT id FROM approvals ORDER BY tool_call_id")]


async def decide(database: Database, made: Tenant, approval_id: UUID, verdict: Any = "approved", **fields: Any) -> approvals.Decided:
    return await approvals.decide(database, made.workspace_id, approval_id, verdict, **({"by": "Dana"} | fields))


async def log_of(database: Database, made: Tenant) -> list[dict[str, Any]]:
    events = await rows(database, made, 'SELECT kind, content FROM events ORDER BY "offset"')
    return [{"kind": kind, **content} for kind, content in events]


async def results(database: Database, made: Tenant) -> list[dict[str, Any]]:
    return [event for event in await log_of(database, made) if event["kind"] == "tool_result"]


def superuser(url: str, statement: str, *parameters: object) -> None:
    with psycopg.connect(url) as db:
        assert db.execute(statement, parameters).rowcount


async def test_unsafe_call_parks_turn_and_logs_approval_request(database: Database, maintenance: Database):
    made, turn_id, (approval_id,) = await parked(database)

    assert await rows(database, made, "SELECT status, attempts, error_class FROM turns") == [("waiting", 0, None)]
    assert await rows(database, made, "SELECT lease_owner, lease_until FROM sessions") == [(None, None)]
    assert await rows(database, made, "SELECT state, attempts FROM tool_calls") == [("awaiting_approval", 0)]
    event = (await log_of(database, made))[-1]
    assert (event["kind"], event["status"], event["approval_id"]) == ("status_update", "approval_requested", str(approval_id))
    assert (event["tool_call_id"], event["tool_name"]) == ("c1", "refund")
    assert turn_id not in dict(await sweep.due(maintenance, stale_s=0)), (
        "the turn is not dispatched before the approval is decided or expires"
    )
    assert isinstance(await claimed(database, turn_id), turns.NotClaimed)


async def test_approved_call_runs_once(database: Database):
    made, turn_id, (approval_id,) = await parked(database)

    decided = await decide(database, made, approval_id, reason="It is fine.")
    world = Script(says("Done."), tools=PAID)

    assert decided.to_dispatch == turn_id
    assert (decided.approval["status"], decided.approval["decided_by"], decided.approval["reason"]) == ("approved", "Dana", "It is fine.")
    assert await run_turn(database, turn_id, world) == Finish("done")
    assert [(call.tool_call_id, call.arguments) for call in world.made] == [("c1", {"order": 1})]
    (event,) = [event for event in await log_of(database, made) if event.get("status") == "approval_decided"]
    assert (event["decision"], event["decided_by"], event["reason"]) == ("approved", "Dana", "It is fine.")
    assert event["decided_at"]
    assert [result["status"] for result in await results(database, made)] == ["succeeded"]
    assert (await rows(database, made, "SELECT used_at IS NOT NULL FROM approvals")) == [(True,)]


async def test_model_reads_reason_of_denial(database: Database):
    made, turn_id, (approval_id,) = await parked(database)

    await decide(database, made, approval_id, "denied", reason="The order was never paid.")
    world = Script(says("I may not."))

    assert await run_turn(database, turn_id, world) == Finish("done")
    assert world.made == []
    (result,) = await results(database, made)
    assert result["status"] == "denied"
    assert "The order was never paid." in result["error"]
    assert "The order was never paid." in world.requests[0].messages[-1].text


async def test_edited_arguments_are_run_and_shown_to_model(database: Database):
    made, turn_id, (approval_id,) = await parked(database)

    await decide(database, made, approval_id, edited_arguments={"order": 77})
    world = Script(says("Done, for 77."), tools=PAID)

    assert await run_turn(database, turn_id, world) == Finish("done")
    assert [call.arguments for call in world.made] == [{"order": 77}]
    assert '"order":77' in world.requests[0].messages[-1].text.replace(" ", "")
    (result,) = await results(database, made)
    assert result["edited_arguments"] == {"order": 77}


@pytest.mark.parametrize("edited", [False, True])
async def test_approval_survives_number_formatting_of_database(database: Database, edited: bool):
    odd: dict[str, Any] = {"order": 1, "cents": 2.0, "huge": 1e300, "large": 1e16, "zero": -0.0, "small": 1e-7, "nested": [{"a": 5e20}]}
    made, turn_id, (approval_id,) = await parked(database, tool_call(1, **({} if edited else odd)))

    await decide(database, made, approval_id, edited_arguments=odd if edited else None)
    world = Script(says("Done."), tools=PAID)
    await run_turn(database, turn_id, world)

    assert [call.tool_call_id for call in world.made] == ["c1"]


@pytest.mark.parametrize(
    ("verdict", "given", "message"),
    [
        ("approved", {"edited_arguments": {"order": "one"}}, "order"),
        ("approved", {"edited_arguments": {}}, "order"),
        ("approved", {"edited_arguments": {"order": 1, "text": "nul \0"}}, "U\\+0000"),
        ("approved", {"edited_arguments": {"order": 1, "text": "x" * 70_000}}, "65536 bytes"),
        ("denied", {"edited_arguments": {"order": 1}}, "approval only"),
        ("denied", {"reason": "x" * 2001}, "2000 characters"),
        ("denied", {"reason": "half \ud83d"}, "surrogate"),
    ],
)
async def test_invalid_decision_is_refused_and_changes_nothing(database: Database, verdict: Any, given: Any, message: str):
    made, _, (approval_id,) = await parked(database)

    with pytest.raises(Rejected, match=message):
        await decide(database, made, approval_id, verdict, **given)

    assert await rows(database, made, "SELECT status, decided_by FROM approvals") == [("pending", None)]


async def test_edits_are_checked_against_parameters_in_turns_snapshot(database: Database):
    made, _, (approval_id,) = await parked(database)
    await rows(database, made, "UPDATE tools SET parameters = '{\"type\": \"object\"}' WHERE name = 'refund' RETURNING 1")

    with pytest.raises(approvals.Unfit) as refused:
        await decide(database, made, approval_id, edited_arguments={"order": "one"})

    assert any("order" in failure for failure in refused.value.failures)


async def test_only_one_of_twenty_concurrent_decisions_counts(database: Database):
    made, turn_id, (approval_id,) = await parked(database)

    async def one(number: int) -> str:
        try:
            await decide(database, made, approval_id, ("approved", "denied")[number % 2], by=f"person {number}")
        except Conflict as error:
            return str(error).partition(" person ")[0]
        return f"person {number}"

    outcomes = Counter(await asyncio.gather(*(one(number) for number in range(20))))

    (winner,) = (outcome for outcome in outcomes if outcome.startswith("person"))
    del outcomes[winner]
    assert sum(outcomes.values()) == 19
    assert all(outcome.endswith("before, by") for outcome in outcomes), outcomes
    assert await rows(database, made, "SELECT decided_by FROM approvals") == [(winner,)]
    assert len([event for event in await log_of(database, made) if event.get("status") == "approval_decided"]) == 1
    assert await run_turn(database, turn_id, Script(says("Well."), tools=PAID)) == Finish("done")


async def test_undecided_approval_expires_and_call_is_not_run(database: Database, maintenance: Database):
    made, turn_id, (approval_id,) = await parked(database, approval_s=0.05)
    await asyncio.sleep(0.1)

    with pytest.raises(Conflict, match="expired"):
        await decide(database, made, approval_id)
    await rows(database, made, "UPDATE turns SET not_before = now() - interval '2 seconds' RETURNING 1")
    assert turn_id in dict(await sweep.due(maintenance, stale_s=10))
    world = Script(says("Nobody could approve it."))
    assert await run_turn(database, turn_id, world) == Finish("done")

    assert world.made == []
    assert await rows(database, made, "SELECT status, decided_by FROM approvals") == [("expired", None)]
    assert [event["decision"] for event in await log_of(database, made) if event.get("status") == "approval_decided"] == ["expired"]
    assert "in time" in (await results(database, made))[0]["error"]
    with pytest.raises(Conflict, match="expired"):
        await decide(database, made, approval_id)


async def test_calls_are_decided_in_any_order_and_others_run_at_once(database: Database):
    made, turn_id, (first, second, third) = await parked(database, tool_call(1), tool_call(2), tool_call(3), tool_call(4, "lookup"))
    assert [result["tool_call_id"] for result in await results(database, made)] == ["c4"]
    world = Script(says("All seen to."), tools=PAID)

    assert (await decide(database, made, third)).to_dispatch == turn_id
    assert await run_turn(database, turn_id, world) == PARKED
    assert (await decide(database, made, first, "denied")).to_dispatch == turn_id
    assert (await decide(database, made, second, edited_arguments={"order": 22})).to_dispatch is None, "the turn is dispatched already"
    assert await run_turn(database, turn_id, world) == Finish("done")

    assert [(call.tool_call_id, call.arguments) for call in world.made] == [("c3", {"order": 3}), ("c2", {"order": 22})]
    assert Counter(result["tool_call_id"] for result in await results(database, made)) == Counter(("c1", "c2", "c3", "c4"))
    assert await rows(database, made, "SELECT tool_call_id, state FROM tool_calls ORDER BY 1") == [
        ("c1", "denied"),
        ("c2", "succeeded"),
        ("c3", "succeeded"),
        ("c4", "succeeded"),
    ]


async def test_decision_during_run_prevents_parking(database: Database):
    made, turn_id, (first, second) = await parked(database, tool_call(1), tool_call(2))
    await decide(database, made, first)
    claim = await claimed(database, turn_id)

    assert (await decide(database, made, second)).to_dispatch is None, "a worker runs the turn"
    world = Script(tools=PAID)
    outcome = await TurnRunner(claim, world, claim.context, claim.resume_point).run()

    assert outcome == replace(PARKED, for_approval=False), "it is queued again, because every approval is decided"
    assert claim.next_turn == turn_id
    assert await rows(database, made, "SELECT status FROM turns") == [("queued",)]
    assert await run_turn(database, turn_id, Script(says("Both."), tools=PAID)) == Finish("done")


async def test_message_to_waiting_turn_is_read_after_decision(database: Database):
    made, turn_id, (approval_id,) = await parked(database)

    joined = await intake.accept(database, made.workspace_id, made.session_id, "And hurry.")
    await decide(database, made, approval_id)
    world = Script(says("Hurried."), tools=PAID)

    assert (joined.turn_id, joined.to_dispatch) == (turn_id, None)
    assert await run_turn(database, turn_id, world) == Finish("done")
    assert world.requests[0].messages[-1].text == "And hurry."
    assert await rows(database, made, "SELECT count(*) FROM turns") == [(1,)]


@pytest.mark.parametrize("how", ["interrupt", "cancel"])
async def test_an_approval_ends_with_its_turn(database: Database, how: str):
    made, turn_id, (approval_id,) = await parked(database)

    if how == "interrupt":
        await intake.accept(database, made.workspace_id, made.session_id, "Never mind.", strategy="interrupt")
    else:
        await database.call("SELECT * FROM cancel_turns($1, $2, NULL, 'Dana')", made.workspace_id, made.session_id)

    assert await rows(database, made, "SELECT status FROM turns WHERE id = :id", id=turn_id) == [("cancelled",)]
    assert await rows(database, made, "SELECT status FROM approvals") == [("cancelled",)]
    assert [result["status"] for result in await results(database, made)] == ["denied"]
    with pytest.raises(Conflict, match="turn is over"):
        await decide(database, made, approval_id)


@pytest.mark.parametrize(
    "forged",
    [
        """UPDATE approvals SET edited_arguments = '{"order": 666}'""",
        "UPDATE approvals SET arguments_hash = 'x'",
        """UPDATE events SET content = jsonb_set(content, '{arguments}', '{"order": 666}') WHERE kind = 'tool_call'""",
        "UPDATE approvals SET used_at = now()",
    ],
)
async def test_call_changed_after_approval_is_not_run(database: Database, database_url: str, forged: str):
    made, turn_id, (approval_id,) = await parked(database)
    await decide(database, made, approval_id)

    superuser(database_url, f"{forged} {'AND' if 'WHERE' in forged else 'WHERE'} session_id = %s", made.session_id)
    world = Script(says("It was not done."), tools=PAID)

    assert await run_turn(database, turn_id, world) == Finish("done")
    assert world.made == []
    assert [result["status"] for result in await results(database, made)] == ["denied"]


async def test_call_that_differs_from_shown_approval_is_not_run(database: Database, database_url: str):
    made, turn_id, (approval_id,) = await parked(database)

    superuser(database_url, """UPDATE approvals SET arguments = '{"order": 2}' WHERE session_id = %s""", made.session_id)
    await decide(database, made, approval_id)
    world = Script(says("It was not done."), tools=PAID)

    assert await run_turn(database, turn_id, world) == Finish("done")
    assert world.made == []


@pytest.mark.parametrize("state", ["requested", "running"])
async def test_call_forged_to_need_no_approval_is_not_run(database: Database, database_url: str, state: str):
    made, turn_id, _ = await parked(database, tool_call(1), tool_call(2))

    superuser(database_url, f"UPDATE tool_calls SET state = '{state}' WHERE session_id = %s", made.session_id)
    superuser(database_url, "UPDATE turns SET status = 'queued', not_before = NULL WHERE session_id = %s", made.session_id)
    world = Script(says("It was not done."), tools=PAID)

    assert await run_turn(database, turn_id, world) == Finish("done")
    assert world.made == []


async def test_database_refuses_start_without_approval(database: Database):
    made, turn_id, (approval_id,) = await parked(database)
    await rows(database, made, "UPDATE turns SET status = 'queued', not_before = NULL RETURNING 1")
    claim = await claimed(database, turn_id)

    with pytest.raises(psycopg.Error, match="without approval"):
        await claim.write(TurnCommit(starts=(ToolStart("c1", "guess"),)))

    assert await rows(database, made, "SELECT state FROM tool_calls") == [("awaiting_approval",)]
    assert (await decide(database, made, approval_id)).to_dispatch is None


async def test_lost_approved_call_is_unknown_and_not_repeated(database: Database):
    made, turn_id, (approval_id,) = await parked(database)
    await decide(database, made, approval_id)
    claim = await claimed(database, turn_id)
    hashed = claim.resume_point.pending["c1"].approval.arguments_hash
    await claim.write(TurnCommit(starts=(ToolStart("c1", hashed),)))
    await rows(database, made, "UPDATE sessions SET lease_until = now() - interval '1 second' RETURNING 1")
    world = Script(says("I do not know."), tools=PAID)

    assert await run_turn(database, turn_id, world) == Finish("done")
    assert world.made == []
    assert [result["status"] for result in await results(database, made)] == ["unknown"]


async def test_list_shows_only_own_workspace(database: Database):
    made, _, ids = await parked(database, *(tool_call(number) for number in range(1, 6)))
    other, *_ = await parked(database)
    await decide(database, made, ids[0], "denied")

    async with database.transaction(made.workspace_id) as db:
        first = await approvals.page(db, limit=3, total=True)
        second = await approvals.page(db, limit=3, after=first.next_cursor)
        pending = await approvals.page(db, status="pending", session_id=made.session_id, agent_id=made.agent_id)
        assert (await approvals.page(db, session_id=other.session_id)).items == []
        with pytest.raises(NotFound):
            await approvals.get(db, uuid4())
    async with database.transaction(other.workspace_id) as db:
        with pytest.raises(NotFound):
            await approvals.get(db, ids[0])
    with pytest.raises(NotFound):
        await decide(database, other, ids[1])

    assert (len(first.items), first.total_count, len(second.items), second.next_cursor) == (3, 5, 2, None)
    assert {item["id"] for item in (*first.items, *second.items)} == set(ids)
    assert len(pending.items) == 4
