"""Approvals with real workers: a waiting turn holds no lease, and an approved call is made once.

The sandbox's tools ignore idempotency keys here, so that the effect of a repeated call is counted twice.
"""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import pytest
import redis

from store.conversations import approvals, intake
from store.database import Database
from tasks.dispatcher import Dispatcher
from tests.support.factories import Tenant, tenant
from tests.support.invariants import violations
from tests.support.servers import until
from tests.support.stack import Process, Stack


@pytest.fixture(scope="module")
def beat(stack: Stack) -> Process:
    return stack.beat()


@pytest.fixture
def worker(stack: Stack, beat: Process) -> Process:
    return stack.worker()


def tool(stack: Stack, name: str = "refund", effect: str = "unsafe") -> dict[str, Any]:
    integration = {"configuration": {"url": f"{stack.sandbox_url}/tools/{name}", "timeout_s": 20}}
    return {"name": name, "effect": effect, "parameters": {"type": "object"}, "integration": integration}


def refund(order: int, **fields: Any) -> str:
    return f"[[call refund {json.dumps({'order': order, 'amount': 5, 'repeats': True} | fields)}]]"


async def send(stack: Stack, database: Database, dispatcher: Dispatcher, text: str) -> tuple[Tenant, UUID]:
    made = await tenant(database, tools=(tool(stack), tool(stack, "orders_lookup", "pure")))
    accepted = await intake.accept(database, made.workspace_id, made.session_id, text)
    assert accepted.turn_id is not None
    dispatcher.dispatch(accepted.turn_id)
    return made, accepted.turn_id


async def send_until_waiting(stack: Stack, database: Database, dispatcher: Dispatcher, text: str) -> tuple[Tenant, UUID, list[UUID]]:
    """Send `text` and wait until its turn waits for approvals. Return the turn and its approvals, in the order of their calls."""
    made, turn_id = await send(stack, database, dispatcher, text)
    until(lambda: stack.status(turn_id) == "waiting", 30)
    assert stack.rows("SELECT lease_owner, lease_until FROM sessions WHERE id = %s", made.session_id) == [(None, None)]
    query = "SELECT p.id FROM approvals p JOIN tool_calls c USING (session_id, tool_call_id) WHERE p.turn_id = %s ORDER BY c.position"
    return made, turn_id, [row[0] for row in stack.rows(query, turn_id)]


async def decide(
    database: Database, dispatcher: Dispatcher, made: Tenant, approval_id: UUID, verdict: Any = "approved", **fields: Any
) -> None:
    decided = await approvals.decide(database, made.workspace_id, approval_id, verdict, **({"by": "Dana"} | fields))
    if decided.to_dispatch is not None:
        dispatcher.dispatch(decided.to_dispatch)


def effects(stack: Stack, turn_id: UUID, name: str = "refund") -> dict[str, int]:
    """Return the number of requests and effects that the sandbox counted for this turn."""
    by_key = stack.counts()["tools"].get(name, {"by_key": {}})["by_key"]
    mine = [counts for key, counts in by_key.items() if str(turn_id) in key]
    return {name: sum(counts[name] for counts in mine) for name in ("requests", "effects")}


def results(stack: Stack, made: Tenant) -> list[dict[str, Any]]:
    query = "SELECT content FROM events WHERE session_id = %s AND kind = 'tool_result' ORDER BY \"offset\""
    return [content for (content,) in stack.rows(query, made.session_id)]


async def test_approved_refund_survives_a_restart_and_is_made_once(
    stack: Stack, database: Database, dispatcher: Dispatcher, beat: Process, worker: Process
):
    made, turn_id, (approval_id,) = await send_until_waiting(stack, database, dispatcher, refund(1))
    assert effects(stack, turn_id) == {"requests": 0, "effects": 0}

    assert worker.stop() == 0
    beat.stop()
    with redis.Redis.from_url(stack.broker_url) as broker:
        broker.flushall()
    stack.beat()
    second = stack.worker()
    await decide(database, dispatcher, made, approval_id)
    stack.drained()

    assert stack.status(turn_id) == "done"
    assert effects(stack, turn_id) == {"requests": 1, "effects": 1}
    assert [result["status"] for result in results(stack, made)] == ["succeeded"]
    status_updates = stack.rows(
        "SELECT content->>'status', content->>'decided_by' FROM events WHERE session_id = %s AND kind = 'status_update'"
        ' ORDER BY "offset"',
        made.session_id,
    )
    assert status_updates == [("approval_requested", None), ("approval_decided", "Dana")]
    assert violations(stack.database_url) == {}
    assert second.stop() == 0


async def test_approvals_of_one_reply_are_decided_in_any_order_and_other_calls_do_not_wait(
    stack: Stack, database: Database, dispatcher: Dispatcher, worker: Process
):
    text = f'{refund(1)}{refund(2)}{refund(3)}[[call orders_lookup {{"order": 41}}]]'
    made, turn_id, (first, second, third) = await send_until_waiting(stack, database, dispatcher, text)
    assert [result["tool_name"] for result in results(stack, made)] == ["orders_lookup"]
    late = await intake.accept(database, made.workspace_id, made.session_id, "And be quick.")

    await decide(database, dispatcher, made, third)
    until(lambda: len(results(stack, made)) == 2, 20)
    await decide(database, dispatcher, made, first, "denied", reason="It was never paid.")
    await decide(database, dispatcher, made, second, edited_arguments={"order": 2, "amount": 77, "repeats": True})
    stack.drained()

    assert stack.status(turn_id) == "done"
    assert late.turn_id == turn_id
    found = {result["tool_call_id"]: result for result in results(stack, made)}
    assert len(found) == len(results(stack, made)) == 4
    rows = stack.rows("SELECT tool_call_id, state FROM tool_calls WHERE turn_id = %s ORDER BY position", turn_id)
    assert [state for _, state in rows] == ["denied", "succeeded", "succeeded", "succeeded"]
    denied, edited, plain, _ = (found[tool_call_id] for tool_call_id, _ in rows)
    assert "It was never paid." in denied["error"]
    assert (edited["edited_arguments"]["amount"], edited["result"]["amount"]) == (77, "77.00")
    assert plain["result"]["order"] == 3
    assert effects(stack, turn_id) == {"requests": 2, "effects": 2}
    read = stack.one("SELECT read_through_offset FROM turns WHERE id = %s", turn_id)
    assert read >= late.offset, "the message that arrived meanwhile was not read"
    assert violations(stack.database_url) == {}
    assert worker.stop() == 0


async def test_worker_killed_during_an_approved_call_leaves_it_unknown(
    stack: Stack, database: Database, dispatcher: Dispatcher, worker: Process
):
    made, turn_id, (approval_id,) = await send_until_waiting(stack, database, dispatcher, refund(1, fault="effect-then-timeout"))
    await decide(database, dispatcher, made, approval_id)
    until(lambda: effects(stack, turn_id)["requests"] == 1, 30)
    worker.kill()

    rescuer = stack.worker()
    stack.drained()

    assert stack.status(turn_id) == "done"
    assert effects(stack, turn_id) == {"requests": 1, "effects": 1}
    assert [result["status"] for result in results(stack, made)] == ["unknown"]
    with pytest.raises(Exception, match="was approved before, by Dana"):
        await decide(database, dispatcher, made, approval_id)
    assert violations(stack.database_url) == {}
    assert rescuer.stop() == 0


async def test_undecided_approval_expires_and_the_turn_continues(stack: Stack, database: Database, dispatcher: Dispatcher, beat: Process):
    stack.env["TURNLINE_APPROVAL_S"] = "1"
    worker = stack.worker()
    made, turn_id = await send(stack, database, dispatcher, refund(1))
    stack.drained()

    assert stack.status(turn_id) == "done"
    assert effects(stack, turn_id) == {"requests": 0, "effects": 0}
    assert [(result["status"], "in time" in result["error"]) for result in results(stack, made)] == [("denied", True)]
    assert stack.one("SELECT status FROM approvals WHERE turn_id = %s", turn_id) == "expired"
    assert violations(stack.database_url) == {}
    assert worker.stop() == 0
