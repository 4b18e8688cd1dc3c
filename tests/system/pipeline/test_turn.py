"""A message becomes an answered turn, with a real broker, worker, database and provider (the sandbox)."""

from __future__ import annotations

from decimal import Decimal

import pytest
from celery import Celery

from store.conversations import budgets, intake
from store.database import Database
from tasks.dispatcher import Dispatcher
from tests.support.factories import tenant
from tests.support.invariants import violations
from tests.support.servers import until
from tests.support.stack import TOOL, Process, Stack


@pytest.fixture(scope="module", autouse=True)
def worker(stack: Stack) -> Process:
    stack.beat()
    return stack.worker()


async def test_message_that_needs_the_tool_is_answered(stack: Stack, database: Database, dispatcher: Dispatcher):
    made = await tenant(database, tools=(stack.tool(),))
    accepted = await intake.accept(database, made.workspace_id, made.session_id, "Is order 41 paid?")
    assert accepted.turn_id is not None
    dispatcher.dispatch(accepted.turn_id)

    stack.drained()

    assert stack.status(accepted.turn_id) == "done"
    log = stack.rows('SELECT kind, content FROM events WHERE session_id = %s ORDER BY "offset"', made.session_id)
    assert [kind for kind, _ in log] == ["customer_message", "tool_call", "tool_result", "agent_message"]
    assert log[1][1]["arguments"] == {"order": 41}
    assert log[2][1]["result"]["paid"] is True
    assert "paid" in log[3][1]["text"]
    assert stack.one("SELECT cost_usd FROM sessions WHERE id = %s", made.session_id) > Decimal(0)
    assert violations(stack.database_url) == {}


async def test_reservations_cover_usage_and_budgets_match_the_ledger(stack: Stack, database: Database, dispatcher: Dispatcher):
    made = await tenant(database, tools=(stack.tool(),))
    async with database.transaction(made.workspace_id) as db:
        for unit, cap in (("usd", Decimal(1)), ("tokens", Decimal(100_000))):
            await budgets.create(db, made.workspace_id, scope="workspace", scope_id=None, unit=unit, period="day", cap=cap)  # type: ignore[arg-type]
    accepted = await intake.accept(database, made.workspace_id, made.session_id, "Is order 41 paid?")
    assert accepted.turn_id is not None
    dispatcher.dispatch(accepted.turn_id)

    stack.drained()

    assert stack.status(accepted.turn_id) == "done"
    calls = stack.rows(
        "SELECT reserved_usd, cost_usd, reserved_tokens, input_tokens + output_tokens FROM model_calls WHERE turn_id = %s", accepted.turn_id
    )
    assert len(calls) == 2
    assert all(0 < cost <= most and 0 < used <= most_tokens for most, cost, most_tokens, used in calls), calls
    spent = stack.rows("SELECT unit, spent, reserved FROM budgets WHERE workspace_id = %s ORDER BY unit", made.workspace_id)
    assert spent == [("tokens", sum(call[3] for call in calls), 0), ("usd", sum(call[1] for call in calls), 0)]
    assert violations(stack.database_url) == {}


async def test_undispatched_turn_is_found_by_the_sweep(stack: Stack, database: Database):
    made = await tenant(database)
    accepted = await intake.accept(database, made.workspace_id, made.session_id, "Hello")

    stack.drained()

    assert stack.status(accepted.turn_id) == "done"


async def test_turn_dispatched_five_times_is_answered_once(stack: Stack, database: Database, dispatcher: Dispatcher):
    made = await tenant(database)
    accepted = await intake.accept(database, made.workspace_id, made.session_id, "Five dispatches")
    for _ in range(5):
        assert accepted.turn_id is not None
        dispatcher.dispatch(accepted.turn_id)

    stack.drained()

    assert stack.counts()["by_text"]["Five dispatches"] == 1
    assert violations(stack.database_url) == {}


async def test_plain_celery_producer_can_send_messages(stack: Stack, database: Database):
    made = await tenant(database)
    producer = Celery(broker=stack.broker_url)
    send = {"session_id": str(made.session_id), "message_key": "web-1", "text": "From a web app"}
    for _ in range(2):
        producer.send_task("messages.receive", kwargs=send, queue="messages")
    until(lambda: stack.one("SELECT count(*) FROM events WHERE session_id = %s AND kind = 'agent_message'", made.session_id) == 1)

    producer.send_task("messages.receive", kwargs=send | {"text": "Another text"}, queue="messages")
    producer.send_task("messages.receive", kwargs={"session_id": "nonsense", "message_key": "k", "text": "t"}, queue="messages")
    producer.send_task("turns.advance", args=("nonsense",), queue="turns")
    until(lambda: stack.one("SELECT count(*) FROM events WHERE session_id = %s AND kind = 'status_update'", made.session_id) == 1)
    producer.close()

    refused = stack.one("SELECT content FROM events WHERE session_id = %s AND kind = 'status_update'", made.session_id)
    assert (refused["status"], refused["error_class"], refused["message_key"]) == ("refused", "Conflict", "web-1")
    assert stack.one("SELECT count(*) FROM events WHERE session_id = %s AND kind = 'customer_message'", made.session_id) == 1
    stack.drained()


async def test_consecutive_messages_of_one_session_are_answered_in_order(stack: Stack, database: Database, dispatcher: Dispatcher):
    made = await tenant(database, strategy="enqueue")
    for number in range(8):
        accepted = await intake.accept(database, made.workspace_id, made.session_id, f"[[say reply {number}]]")
        if accepted.to_dispatch:
            assert accepted.turn_id is not None
            dispatcher.dispatch(accepted.turn_id)

    stack.drained()

    replies = stack.rows(
        """SELECT content->>'text' FROM events WHERE session_id = %s AND kind = 'agent_message' ORDER BY "offset\"""", made.session_id
    )
    assert [text for (text,) in replies] == [f"reply {number}" for number in range(8)]
    assert stack.counts()["bad_requests"] == []
    assert violations(stack.database_url) == {}


@pytest.mark.parametrize(
    ("fault", "status", "requests"),
    [
        ("500", "done", 2),
        ("429-retry-after", "done", 2),
        ("reset-mid-body", "done", 2),
        ("execute-then-drop", "done", 2),
        ("401", "failed", 1),
        ("html", "failed", 1),
        ("429-retry-after-long", "failed", 1),
        ("oversized", "failed", 1),
        ("wrong-schema", "done", 2),
        ("nul", "done", 1),
        ("deep", "failed", 1),
        ("no-usage", "done", 1),
    ],
)
async def test_turn_handles_provider_faults(
    stack: Stack, database: Database, dispatcher: Dispatcher, fault: str, status: str, requests: int
):
    made = await tenant(database)
    text = f"[[fault {fault}]] {fault}"
    accepted = await intake.accept(database, made.workspace_id, made.session_id, text)
    assert accepted.turn_id is not None
    dispatcher.dispatch(accepted.turn_id)

    stack.drained()

    assert stack.status(accepted.turn_id) == status
    assert stack.counts()["by_text"][text] == requests
    assert stack.one("SELECT count(*) FROM model_calls WHERE turn_id = %s", accepted.turn_id) == requests
    assert violations(stack.database_url) == {}


@pytest.mark.parametrize(
    ("fault", "effect", "status", "requests"),
    [
        ("500", "idempotent", "succeeded", 2),
        ("effect-then-500", "idempotent", "succeeded", 2),
        ("effect-then-500", "unsafe", "unknown", 1),
        ("execute-then-drop", "unsafe", "unknown", 1),
        ("nul", "idempotent", "succeeded", 1),
        ("truncated-json", "idempotent", "failed", 1),
        ("oversized", "idempotent", "failed", 1),
        ("deep", "idempotent", "failed", 1),
        ("redirect-metadata", "unsafe", "unknown", 1),
    ],
)
async def test_turn_handles_tool_faults(
    stack: Stack, database: Database, dispatcher: Dispatcher, fault: str, effect: str, status: str, requests: int
):
    """The model gets a result, the turn is answered, and an unsafe call is not repeated."""
    loose = {"type": "object", "properties": {"order": {"type": "integer"}, "fault": {"type": "string"}}}
    made = await tenant(database, tools=(stack.tool(effect=effect, parameters=loose),))
    text = f'[[call orders_lookup {{"order": 41, "fault": "{fault}"}}]] {fault} {effect}'
    accepted = await intake.accept(database, made.workspace_id, made.session_id, text)
    assert accepted.turn_id is not None
    dispatcher.dispatch(accepted.turn_id)

    stack.drained()

    assert stack.status(accepted.turn_id) == "done"
    ((state, attempts, key),) = stack.rows("SELECT state, attempts, idempotency_key FROM tool_calls WHERE turn_id = %s", accepted.turn_id)
    assert (state, attempts) == (status, requests)
    assert stack.counts()["tools"]["orders_lookup"]["by_key"][key]["effects"] <= 1
    assert violations(stack.database_url) == {}


async def test_invalid_tool_arguments_are_reported_to_the_model(stack: Stack, database: Database, dispatcher: Dispatcher):
    made = await tenant(database, tools=(stack.tool(),))
    for text in ("[[bad-arguments orders_lookup]]", "[[unknown-tool]]", '[[call orders_lookup {"order": "forty-one"}]]'):
        accepted = await intake.accept(database, made.workspace_id, made.session_id, text)
        assert accepted.turn_id is not None
        dispatcher.dispatch(accepted.turn_id)
        stack.drained()
        assert stack.status(accepted.turn_id) == "done"

    states = stack.rows("SELECT state, attempts, error FROM tool_calls WHERE session_id = %s ORDER BY created_at", made.session_id)
    assert [(state, attempts) for state, attempts, _ in states] == [("failed", 0)] * 3
    assert "JSON object" in states[0][2]
    assert "orders_lookup" in states[1][2]
    assert "order" in states[2][2]
    assert violations(stack.database_url) == {}


async def test_tool_cannot_reach_internal_addresses(stack: Stack, database: Database, dispatcher: Dispatcher):
    """The sandbox's network is allowed in the settings; the metadata service of the cloud is not."""
    url = "http://169.254.169.254/latest/meta-data"
    made = await tenant(database, tools=({**TOOL, "integration": {"configuration": {"url": url}}},))
    accepted = await intake.accept(database, made.workspace_id, made.session_id, "Is order 41 paid?")
    assert accepted.turn_id is not None
    dispatcher.dispatch(accepted.turn_id)

    stack.drained()

    ((state, attempts, error),) = stack.rows("SELECT state, attempts, error FROM tool_calls WHERE turn_id = %s", accepted.turn_id)
    assert (state, attempts) == ("failed", 0)
    assert "metadata address, which tools may not reach" in error


async def test_logs_contain_no_message_text_and_no_secrets(stack: Stack, database: Database, dispatcher: Dispatcher):
    made = await tenant(database, tools=(stack.tool(),))
    for text in ("canary-words are these", "[[fault 401]] canary-words", '[[call orders_lookup {"order": "canary-words"}]]'):
        accepted = await intake.accept(database, made.workspace_id, made.session_id, text)
        assert accepted.turn_id is not None
        dispatcher.dispatch(accepted.turn_id)
        stack.drained()
    producer = Celery(broker=stack.broker_url)
    producer.send_task(
        "messages.receive", kwargs={"session_id": str(made.session_id), "message_key": "", "text": "canary-words"}, queue="messages"
    )
    until(lambda: stack.one("SELECT count(*) FROM events WHERE content->>'status' = 'refused' AND session_id = %s", made.session_id) == 1)
    producer.close()

    logs = stack.tails()
    assert "canary-words" not in logs
    assert "sk-sandbox" not in logs
