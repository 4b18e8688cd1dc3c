"""Cancelling turns that a real worker runs: requests are cut off, streamed text and usage are kept, nothing is lost or doubled."""

from __future__ import annotations

from decimal import Decimal

import pytest

from store.database import Database
from tasks.dispatcher import Dispatcher
from tests.support.conversation import STREAM, talk, tool, wait_until
from tests.support.invariants import violations
from tests.support.stack import Process, Stack


@pytest.fixture(scope="module", autouse=True)
def worker(stack: Stack) -> Process:
    stack.beat()
    return stack.worker()


async def test_cancel_during_a_streamed_reply(stack: Stack, database: Database, dispatcher: Dispatcher):
    session = await talk(stack, database, dispatcher)
    turn_id = await session.send(f"{STREAM} at length")
    await session.wait_for_stream(turn_id)
    before = stack.counts()["model"]

    assert await session.cancel(turn_id) == "cancelling"

    assert await session.ended(turn_id) == ("cancelled", "Cancelled")
    assert session.kinds() == ["customer_message", "status_update"]
    content = session.log()[-1][2]
    assert (content["status"], content["by"]) == ("cancelled", "ops")
    assert content["partial_text"].startswith("alpha bravo charlie delta echo")
    ((state, estimated, input_tokens, output_tokens, cost),) = stack.rows(
        "SELECT state, estimated, input_tokens, output_tokens, cost_usd FROM model_calls WHERE turn_id = %s", turn_id
    )
    assert (state, estimated) == ("settled", True)
    assert input_tokens > 0
    assert len(content["partial_text"].split()) / 2 < output_tokens < 3000
    assert cost == stack.one("SELECT cost_usd FROM sessions WHERE id = %s", session.made.session_id) > Decimal(0)
    await wait_until(lambda: stack.counts()["model"]["left"] > before["left"])
    assert stack.counts()["model"]["completed"] == before["completed"]
    stack.drained()
    assert violations(stack.database_url) == {}
    assert await session.cancel(turn_id) == "settled"
    following = await session.send("And now?")
    assert await session.ended(following) == ("done", None)


@pytest.mark.parametrize(("effect", "state"), [("pure", "failed"), ("idempotent", "unknown"), ("unsafe", "unknown")])
async def test_cancel_during_a_tool_call(stack: Stack, database: Database, dispatcher: Dispatcher, effect: str, state: str):
    session = await talk(stack, database, dispatcher, tool(stack, effect))
    before = stack.counts()["tools"].get("orders_lookup", {}).get("requests", 0)
    turn_id = await session.send(f'[[call orders_lookup {{"order": 41, "latency_ms": 60000}}]] {effect} in flight')
    await wait_until(lambda: stack.counts()["tools"].get("orders_lookup", {}).get("requests", 0) > before)

    await session.cancel()

    assert await session.ended(turn_id) == ("cancelled", "Cancelled")
    assert session.kinds() == ["customer_message", "tool_call", "tool_result", "status_update"]
    result = session.log()[2][2]
    assert result["status"] == state == stack.one("SELECT state FROM tool_calls WHERE turn_id = %s", turn_id)
    assert ("may or may not" in result["error"]) == (state == "unknown")
    assert await session.ended(await session.send(f"After {effect}?")) == ("done", None)
    messages = await session.model_messages(f"After {effect}?")
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "tool", "user"]
    assert stack.counts()["bad_requests"] == []
    stack.drained()
    assert violations(stack.database_url) == {}


async def test_cancel_a_turn_awaiting_approval_and_a_queued_turn(stack: Stack, database: Database, dispatcher: Dispatcher):
    session = await talk(stack, database, dispatcher, tool(stack, "unsafe", approval="required"), strategy="enqueue")
    first = await session.send('[[call orders_lookup {"order": 41}]] please')
    await wait_until(lambda: stack.status(first) == "waiting")
    second, third = await session.send("second"), await session.send("third")

    assert await session.cancel(second) == "cancelled"
    assert stack.status(first) == "waiting"
    assert await session.cancel(first) == "cancelled"

    assert await session.ended(third) == ("done", None)
    assert stack.one("SELECT status FROM approvals WHERE turn_id = %s", first) == "cancelled"
    assert stack.one("SELECT state FROM tool_calls WHERE turn_id = %s", first) == "denied"
    assert [stack.status(turn_id) for turn_id in (first, second)] == ["cancelled", "cancelled"]
    stack.drained()
    assert violations(stack.database_url) == {}


async def test_cancel_a_turn_whose_worker_was_killed(stack: Stack, database: Database, dispatcher: Dispatcher, worker: Process):
    session = await talk(stack, database, dispatcher)
    text = f"{STREAM} orphaned"
    turn_id = await session.send(text)
    await session.requests(text, 1)
    worker.kill()

    assert await session.cancel(turn_id) in ("cancelling", "cancelled"), "depends on whether the lease has expired"

    rescuer = stack.worker()
    assert await session.ended(turn_id) == ("cancelled", "Cancelled")
    assert stack.counts()["by_text"][text] == 1
    assert stack.rows("SELECT state FROM model_calls WHERE turn_id = %s", turn_id) == [("unknown",)]
    stack.drained()
    assert violations(stack.database_url) == {}
    assert rescuer.stop() == 0
