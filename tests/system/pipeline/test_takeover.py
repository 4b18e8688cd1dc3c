"""A person takes a session over while a real worker runs its turn, replies in it, and gives it back."""

from __future__ import annotations

import pytest

from store.conversations import session_control
from store.database import Database
from tasks.dispatcher import Dispatcher
from tests.support.conversation import STREAM, talk, tool, wait_until
from tests.support.invariants import violations
from tests.support.stack import Process, Stack


@pytest.fixture(scope="module", autouse=True)
def worker(stack: Stack) -> Process:
    stack.beat()
    return stack.worker()


async def test_takeover_during_a_reply_and_return_to_auto(stack: Stack, database: Database, dispatcher: Dispatcher):
    session = await talk(stack, database, dispatcher)
    turn_id = await session.send(f"{STREAM} taken over")
    await session.wait_for_stream(turn_id)

    await session.set_mode("manual")

    assert await session.ended(turn_id) == ("cancelled", "TakenOver")
    assert await session.send("Is anybody there?") is None
    for source, text in (("human_agent", "Grace here, one moment."), ("human_agent_on_behalf_of_ai_agent", "It is paid.")):
        await session_control.reply_as_person(database, session.made.workspace_id, session.made.session_id, source, text)
    assert [source for kind, source, _ in session.log() if kind == "agent_message"] == ["human_agent", "human_agent_on_behalf_of_ai_agent"]
    assert stack.rows("SELECT status FROM turns WHERE session_id = %s", session.made.session_id) == [("cancelled",)]

    await session.set_mode("auto")

    assert await session.ended(await session.send("Thanks, and order 42?")) == ("done", None)
    messages = await session.model_messages("Thanks, and order 42?")
    conversation = [(message["role"], message["content"]) for message in messages if message["role"] != "system"]
    assert conversation[-4:] == [
        ("user", "Is anybody there?"),
        ("assistant", "Grace here, one moment."),
        ("assistant", "It is paid."),
        ("user", "Thanks, and order 42?"),
    ]
    stack.drained()
    assert violations(stack.database_url) == {}


async def test_paused_turn_is_answered_after_resuming(stack: Stack, database: Database, dispatcher: Dispatcher):
    session = await talk(stack, database, dispatcher)
    text = "[[latency 1500]] paused"
    turn_id = await session.send(text)
    await session.requests(text, 1)

    await session.set_mode("paused")

    await wait_until(lambda: stack.status(turn_id) == "queued")
    assert session.kinds() == ["customer_message", "status_update"]
    assert await session.send("And this") == turn_id
    assert stack.status(turn_id) == "queued"
    await session.set_mode("auto")
    assert await session.ended(turn_id) == ("done", None)
    assert session.kinds().count("agent_message") == 1
    assert stack.one("SELECT attempts FROM turns WHERE id = %s", turn_id) == 1, "pausing counts as an attempt"
    stack.drained()
    assert violations(stack.database_url) == {}


async def test_takeover_during_a_tool_call(stack: Stack, database: Database, dispatcher: Dispatcher):
    """The call is cut off, its result is recorded as unknown, and the agent does not reply."""
    session = await talk(stack, database, dispatcher, tool(stack, "unsafe"))
    before = stack.counts()["tools"].get("orders_lookup", {}).get("requests", 0)
    turn_id = await session.send('[[call orders_lookup {"order": 41, "latency_ms": 60000}]] taken')
    await wait_until(lambda: stack.counts()["tools"].get("orders_lookup", {}).get("requests", 0) > before)

    offset = await session.set_mode("manual")

    assert await session.ended(turn_id) == ("cancelled", "TakenOver")
    assert offset is not None
    after = session.log()[offset + 1 :]
    assert [(kind, content["status"]) for kind, _, content in after] == [("tool_result", "unknown"), ("status_update", "cancelled")]
    assert "cut off" in after[0][2]["error"], "the tool call ran until its own timeout"
    stack.drained()
    assert violations(stack.database_url) == {}
