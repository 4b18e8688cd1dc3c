"""A worker killed during a turn: another worker finishes the turn and repeats nothing that was finished.

The sandbox makes a request hang, and then the worker gets SIGKILL.
"""

from __future__ import annotations

import signal
from typing import Any

import pytest

from store.conversations import intake
from store.database import Database
from tasks.dispatcher import Dispatcher
from tests.support.factories import tenant
from tests.support.invariants import violations
from tests.support.servers import until
from tests.support.stack import TOOL, Stack

LOOSE = {"type": "object", "properties": {"order": {"type": "integer"}, "fault": {"type": "string"}}}


def tool(stack: Stack, effect: str) -> dict[str, Any]:
    return {
        **TOOL,
        "effect": effect,
        "parameters": LOOSE,
        "configuration": {"approval": "never"},
        "integration": {"configuration": {"url": f"{stack.sandbox_url}/tools/orders_lookup"}},
    }


async def kill_worker_during(
    stack: Stack, database: Database, dispatcher: Dispatcher, text: str, *, model: int, tool_requests: int = 0, effect: str = "idempotent"
) -> Any:
    """Send `text`, kill the worker, let another worker finish the turn, and return the turn's id.

    The kill comes once the model has received `model` requests and the tool `tool_requests`.
    """
    made = await tenant(database, tools=(tool(stack, effect),))
    doomed = stack.worker()
    before = tool_request_count(stack)
    accepted = await intake.accept(database, made.workspace_id, made.session_id, text)
    assert accepted.turn_id is not None
    dispatcher.dispatch(accepted.turn_id)
    until(lambda: model_request_count(stack, text) >= model and tool_request_count(stack) >= before + tool_requests, 20)
    doomed.kill()
    assert stack.status(accepted.turn_id) == "running", "the kill came after the turn's end, so the run proves nothing"

    rescuer = stack.worker()
    stack.beat()
    stack.drained(20)

    assert stack.status(accepted.turn_id) == "done"
    assert violations(stack.database_url) == {}
    assert stack.one("SELECT attempts FROM turns WHERE id = %s", accepted.turn_id) == 2
    assert stack.counts()["bad_requests"] == []
    assert rescuer.stop() == 0
    return accepted.turn_id


def tool_request_count(stack: Stack) -> int:
    count: int = stack.counts()["tools"].get("orders_lookup", {}).get("requests", 0)
    return count


def model_request_count(stack: Stack, text: str) -> int:
    count: int = stack.counts()["by_text"].get(text, 0)
    return count


async def states(stack: Stack, turn_id: Any) -> list[str]:
    return [state for (state,) in stack.rows("SELECT state FROM model_calls WHERE turn_id = %s ORDER BY step, attempt", turn_id)]


async def test_worker_killed_during_the_first_model_call(stack: Stack, database: Database, dispatcher: Dispatcher):
    """The request was sent and the reply was lost: the call is made again, and the ledger keeps the first one as unknown."""
    text = "[[fault hang]] after the claim"
    turn_id = await kill_worker_during(stack, database, dispatcher, text, model=1)

    assert model_request_count(stack, text) == 2
    assert await states(stack, turn_id) == ["unknown", "settled"]


async def test_worker_killed_after_the_first_model_reply(stack: Stack, database: Database, dispatcher: Dispatcher):
    """The reply that requests the tool is committed and the tool's result is not: that model call is not repeated."""
    text = '[[call orders_lookup {"order": 41, "fault": "hang"}]] first reply'
    turn_id = await kill_worker_during(stack, database, dispatcher, text, model=1, tool_requests=1)

    assert model_request_count(stack, text) == 2, "one request for each of the two steps"
    assert await states(stack, turn_id) == ["settled", "settled"]


@pytest.mark.parametrize(("effect", "status", "effects"), [("idempotent", "succeeded", 1), ("unsafe", "unknown", 1)])
async def test_worker_killed_after_the_tools_effect(
    stack: Stack, database: Database, dispatcher: Dispatcher, effect: str, status: str, effects: int
):
    """The tool ran and its reply was lost: an idempotent call is repeated with its key, an unsafe one is reported as unknown."""
    text = f'[[call orders_lookup {{"order": 41, "fault": "effect-then-timeout"}}]] {effect} effect'
    turn_id = await kill_worker_during(stack, database, dispatcher, text, model=1, tool_requests=1, effect=effect)

    key = stack.one("SELECT idempotency_key FROM tool_calls WHERE turn_id = %s", turn_id)
    done = stack.counts()["tools"]["orders_lookup"]["by_key"][key]
    assert done["effects"] == effects
    assert done["requests"] == (2 if effect == "idempotent" else 1)
    assert stack.one("SELECT state FROM tool_calls WHERE turn_id = %s", turn_id) == status
    assert model_request_count(stack, text) == 2


async def test_worker_killed_before_the_final_commit(stack: Stack, database: Database, dispatcher: Dispatcher):
    """Everything but the last reply is committed: only the model call in flight is made again."""
    text = '[[call orders_lookup {"order": 41}]] [[fault hang after 1]] before settling'
    turn_id = await kill_worker_during(stack, database, dispatcher, text, model=2, tool_requests=1)

    assert model_request_count(stack, text) == 3
    assert await states(stack, turn_id) == ["settled", "unknown", "settled"]
    key = stack.one("SELECT idempotency_key FROM tool_calls WHERE turn_id = %s", turn_id)
    assert stack.counts()["tools"]["orders_lookup"]["by_key"][key] == {"requests": 1, "effects": 1}


async def test_worker_stopped_past_its_lease_writes_nothing(stack: Stack, database: Database, dispatcher: Dispatcher):
    """The worker gets SIGSTOP for longer than its lease, then SIGCONT: the fence refuses its commit."""
    made = await tenant(database)
    stopped = stack.worker(queues="turns")
    text = "[[latency 600]] stopped"
    accepted = await intake.accept(database, made.workspace_id, made.session_id, text)
    assert accepted.turn_id is not None
    dispatcher.dispatch(accepted.turn_id)
    until(lambda: model_request_count(stack, text) == 1)
    stopped.popen.send_signal(signal.SIGSTOP)
    other = stack.worker()
    stack.beat()
    stack.drained(20)
    events = stack.rows("SELECT * FROM events WHERE session_id = %s", made.session_id)

    stopped.popen.send_signal(signal.SIGCONT)
    until(lambda: "taken over" in stopped.log.read_text() or "lease" in stopped.log.read_text(), 10)

    assert stack.status(accepted.turn_id) == "done"
    assert stack.rows("SELECT * FROM events WHERE session_id = %s", made.session_id) == events
    assert violations(stack.database_url) == {}
    stopped.stop()
    other.stop()


async def test_warm_shutdown_finishes_running_turns(stack: Stack, database: Database, dispatcher: Dispatcher):
    made = await tenant(database, sessions=20)
    worker = stack.worker()
    for session_id in made.session_ids:
        accepted = await intake.accept(database, made.workspace_id, session_id, f"[[latency 3000]] warm {session_id}")
        assert accepted.turn_id is not None
        dispatcher.dispatch(accepted.turn_id)
    until(lambda: stack.one("SELECT count(*) FROM turns WHERE status = 'running'") == 20)

    assert worker.stop() == 0

    assert stack.one("SELECT count(*) FROM turns WHERE status = 'done' AND workspace_id = %s", made.workspace_id) == 20
    assert violations(stack.database_url) == {}
