"""A message arrives while a real worker runs a turn: the strategy decides how the turn ends and what the model sees of it."""

from __future__ import annotations

import pytest
from celery import Celery

from engine.errors import Conflict
from engine.turn.state import CUT_OFF
from store.database import Database
from tasks.dispatcher import Dispatcher
from tests.support.conversation import STREAM, talk, tool, wait_until
from tests.support.invariants import violations
from tests.support.stack import Process, Stack


@pytest.fixture(scope="module", autouse=True)
def worker(stack: Stack) -> Process:
    stack.beat()
    return stack.worker()


async def test_interrupt_cuts_off_the_reply_and_the_next_turn_sees_its_text(stack: Stack, database: Database, dispatcher: Dispatcher):
    session = await talk(stack, database, dispatcher, strategy="interrupt")
    first = await session.send(f"{STREAM} tell me all")
    await session.wait_for_stream(first)

    second = await session.send("Wait, only the last one")

    assert await session.ended(first) == ("cancelled", "Interrupted")
    assert await session.ended(second) == ("done", None)
    (partial,) = [content["partial_text"] for _, _, content in session.log() if "partial_text" in content]
    messages = await session.model_messages("Wait, only the last one")
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[2]["content"] == f"{partial} {CUT_OFF}"
    assert session.kinds().count("agent_message") == 1
    stack.drained()
    assert violations(stack.database_url) == {}


async def test_interrupt_is_ignored_if_the_agent_does_not_allow_it(stack: Stack, database: Database, dispatcher: Dispatcher):
    session = await talk(stack, database, dispatcher, strategy="interrupt", allow_interruption=False)
    slow = "[[latency 1500]] slowly"
    first = await session.send(slow)
    await session.requests(slow, 1)

    assert await session.send("And this?") == first

    assert await session.ended(first) == ("done", None)
    await wait_until(lambda: session.kinds().count("agent_message") == 2)
    assert session.kinds().count("status_update") == 0
    stack.drained()
    assert violations(stack.database_url) == {}


async def test_rollback_hides_the_cancelled_turn_from_the_model(stack: Stack, database: Database, dispatcher: Dispatcher):
    session = await talk(stack, database, dispatcher, tool(stack, "idempotent"), strategy="rollback")
    text = '[[call orders_lookup {"order": 41}]] [[fault hang after 1]] rolled back'
    first = await session.send(text)
    await session.requests(text, 2)

    second = await session.send("From the start")

    assert await session.ended(first) == ("cancelled", "RolledBack")
    assert await session.ended(second) == ("done", None)
    messages = await session.model_messages("From the start")
    assert [message["role"] for message in messages] == ["system", "user", "user"]
    assert [kind for kind, _, _ in session.log() if kind.startswith("tool")] == ["tool_call", "tool_result"], "the log lacks the tool call"
    assert stack.one("SELECT count(*) FROM model_calls WHERE turn_id = %s AND state = 'settled'", first) == 2, (
        "the ledger lacks the model calls"
    )
    stack.drained()
    assert violations(stack.database_url) == {}


async def test_rollback_is_refused_once_an_unsafe_tool_has_run(stack: Stack, database: Database, dispatcher: Dispatcher):
    session = await talk(stack, database, dispatcher, tool(stack, "unsafe"), strategy="rollback")
    text = '[[call orders_lookup {"order": 41}]] [[fault hang after 1]] unsafe'
    first = await session.send(text)
    await session.requests(text, 2)

    with pytest.raises(Conflict, match="unsafe tool"):
        await session.send("From the start, unsafe")

    assert stack.status(first) == "running"
    second = await session.send("Then stop", strategy="interrupt")
    assert await session.ended(first) == ("cancelled", "Interrupted")
    assert await session.ended(second) == ("done", None)
    messages = await session.model_messages("Then stop")
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "tool", "user"], (
        "the tool call is hidden from the model"
    )
    stack.drained()
    assert violations(stack.database_url) == {}


async def test_reject_refuses_direct_and_celery_messages_until_the_turn_settles(stack: Stack, database: Database, dispatcher: Dispatcher):
    session = await talk(stack, database, dispatcher, strategy="reject")
    text = f"{STREAM} busy"
    first = await session.send(text)
    await session.requests(text, 1)

    with pytest.raises(Conflict, match="reject"):
        await session.send("Too early")
    producer = Celery(broker=stack.broker_url)
    producer.send_task(
        "messages.receive",
        kwargs={"session_id": str(session.made.session_id), "message_key": "k", "text": "Too early as well"},
        queue="messages",
    )
    await wait_until(lambda: "status_update" in session.kinds())
    producer.close()

    content = session.log()[-1][2]
    assert (content["status"], content["error_class"], content["message_key"]) == ("refused", "Conflict", "k")
    await session.cancel()
    assert await session.ended(first) == ("cancelled", "Cancelled")
    assert await session.ended(await session.send("Now")) == ("done", None)
    stack.drained()
    assert violations(stack.database_url) == {}
