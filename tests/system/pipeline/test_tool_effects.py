"""Tool effects in whole turns: a worker killed after the effect, a status check that fails, a server that is down.

The sandbox's tool ignores idempotency keys here, so that the effect of a repeated call is counted twice.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import insert

from models import ToolIntegrationRow
from store.conversations import intake
from store.database import Database
from tasks.dispatcher import Dispatcher
from tests.support.factories import Tenant, tenant
from tests.support.invariants import violations
from tests.support.servers import free_port, until
from tests.support.stack import TOOL, Stack

pytestmark = pytest.mark.usefixtures("beat")


@pytest.fixture(scope="module")
def beat(stack: Stack) -> None:
    stack.beat()


def tool(stack: Stack, effect: str) -> dict[str, Any]:
    """Return the sandbox's tool with this effect and, if it is queryable, its status check."""
    url = f"{stack.sandbox_url}/tools/orders_lookup"
    status = {"url": f"{url}/status", "query": {"key": "{idempotency_key}"}, "done": "done", "result": "result"}
    configuration = {"url": url, "timeout_s": 1} | ({"status": status} if effect == "queryable" else {})
    return TOOL | {"effect": effect, "parameters": {"type": "object"}, "integration": {"configuration": configuration}}


async def send(database: Database, dispatcher: Dispatcher, made: Tenant, fields: str) -> UUID:
    text = f'[[call orders_lookup {{"order": 41, "repeats": true, {fields}}}]]'
    accepted = await intake.accept(database, made.workspace_id, made.session_id, text)
    assert accepted.turn_id is not None
    dispatcher.dispatch(accepted.turn_id)
    return accepted.turn_id


def tool_call(stack: Stack, turn_id: UUID) -> dict[str, Any]:
    """Return the tool call's row, the result that the model saw, and the sandbox's counts for its idempotency key."""
    ((state, attempts, key, error),) = stack.rows(
        "SELECT state, attempts, idempotency_key, error FROM tool_calls WHERE turn_id = %s", turn_id
    )
    session_id = stack.one("SELECT session_id FROM turns WHERE id = %s", turn_id)
    content = stack.one("SELECT content FROM events WHERE session_id = %s AND kind = 'tool_result'", session_id)
    counts = stack.counts()["tools"]["orders_lookup"]["by_key"].get(key, {})
    return {"state": state, "attempts": attempts, "error": error, "content": content, "counts": counts}


@pytest.mark.parametrize(
    ("fault", "status_fault", "state", "counts"),
    [
        ("effect-then-timeout", "", "succeeded", {"requests": 1, "effects": 1, "status_requests": 1}),
        ("effect-then-timeout", "500", "succeeded", {"requests": 1, "effects": 1, "status_requests": 2}),
        ("effect-then-timeout", "500 x9", "unknown", {"requests": 1, "effects": 1, "status_requests": 3}),
        ("hang", "", "succeeded", {"requests": 2, "effects": 1, "status_requests": 3}),
    ],
)
async def test_queryable_call_of_a_killed_worker_is_repeated_only_if_it_did_not_happen(
    stack: Stack, database: Database, dispatcher: Dispatcher, fault: str, status_fault: str, state: str, counts: dict[str, int]
):
    """The worker is killed while it waits for the reply. The next one queries the status and repeats the call only if it did not happen."""
    queryable = tool(stack, "queryable")
    queryable["integration"]["configuration"]["timeout_s"] = 60  # only the killed worker waits for it
    made = await tenant(database, tools=(queryable,))
    doomed = stack.worker()
    before = stack.counts()["tools"].get("orders_lookup", {}).get("requests", 0)
    faults = f'"fault": "{fault}"' + (f', "status_fault": "{status_fault}"' if status_fault else "")
    turn_id = await send(database, dispatcher, made, faults)
    until(lambda: stack.counts()["tools"].get("orders_lookup", {}).get("requests", 0) > before, 10)
    doomed.kill()
    assert stack.status(turn_id) == "running", "the kill came after the turn's end, so the run proves nothing"

    rescuer = stack.worker()
    stack.drained(30)

    assert stack.status(turn_id) == "done"
    call = tool_call(stack, turn_id)
    assert (call["state"], call["counts"]) == (state, counts)
    assert call["content"]["status"] == state
    if state == "succeeded":
        assert call["content"]["result"]["paid"] is True
    else:
        assert "may or may not have happened" in call["content"]["error"]
        assert call["error"] == call["content"]["error"], "the operator and the model see different errors"
    assert violations(stack.database_url) == {}
    assert rescuer.stop() == 0


async def test_queryable_call_falls_back_to_the_next_integration(stack: Stack, database: Database, dispatcher: Dispatcher):
    """After a lost reply the status is queried. If a server does not listen, the tool's next integration takes over."""
    worker = stack.worker()
    lost = await send(database, dispatcher, await tenant(database, tools=(tool(stack, "queryable"),)), '"fault": "execute-then-drop"')

    unsafe = tool(stack, "unsafe") | {"configuration": {"approval": "never"}}
    made = await tenant(database, tools=(unsafe,))
    tool_id = stack.one("SELECT id FROM tools WHERE workspace_id = %s", made.workspace_id)
    async with database.transaction(made.workspace_id) as db:
        down = {"workspace_id": made.workspace_id, "tool_id": tool_id, "integration_type": "custom_tool", "target_id": "down"}
        configuration = {"url": f"http://127.0.0.1:{free_port()}/"}
        await db.execute(insert(ToolIntegrationRow).values(**down, priority=9, configuration=configuration))
    rerouted = await send(database, dispatcher, made, '"note": 1')
    stack.drained(30)

    assert tool_call(stack, lost)["counts"] == {"requests": 1, "effects": 1, "status_requests": 1}
    assert tool_call(stack, lost)["content"]["result"]["paid"] is True
    assert tool_call(stack, rerouted)["counts"] == {"requests": 1, "effects": 1}
    used = stack.one("SELECT target_id FROM tool_integrations i JOIN tool_calls c ON c.integration_id = i.id WHERE turn_id = %s", rerouted)
    assert (tool_call(stack, rerouted)["state"], used) == ("succeeded", "orders_lookup")
    assert violations(stack.database_url) == {}
    assert worker.stop() == 0
