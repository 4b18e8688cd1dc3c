"""A turn keeps the prompt, model and tools of the agent that it started with. The provider's requests show it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import pytest

from store.catalog import agents, tools
from store.database import Database
from tasks.dispatcher import Dispatcher
from tests.support.conversation import Conversation, talk, tool, wait_until
from tests.support.invariants import violations
from tests.support.stack import Stack

NOTES = {"name": "notes", "description": "Takes a note.", "effect": "idempotent", "parameters": {"type": "object"}}
LATER = {"name": "refunds", "description": "Refunds an order.", "effect": "idempotent", "parameters": {"type": "object"}}


@pytest.fixture(scope="module", autouse=True)
def beat(stack: Stack) -> None:
    stack.beat()


async def start_session(stack: Stack, database: Database, dispatcher: Dispatcher) -> Conversation:
    slow, notes = tool(stack, "idempotent"), NOTES | {"integration": {"configuration": {"url": f"{stack.sandbox_url}/tools/notes"}}}
    return await talk(stack, database, dispatcher, slow, notes, system_prompt="Be brief.", model_name="gpt-4o", temperature=30)


async def change_everything(session: Conversation) -> None:
    """Change the prompt, the model, its settings and a tool's schema; disable one tool and add another."""
    made = session.made
    ids = dict(session.stack.rows("SELECT name, id FROM tools WHERE workspace_id = %s", made.workspace_id))
    async with session.database.transaction(made.workspace_id) as db:
        values = {"system_prompt": "Be verbose.", "model_name": "gpt-4.1", "temperature": 90, "max_tokens": 77, "name": "Eve"}
        await agents.change(db, made.agent_id, values)
        changed = {"description": "Looks orders up.", "parameters": {"type": "object", "properties": {"number": {"type": "integer"}}}}
        await tools.change(db, ids["orders_lookup"], changed)
        await tools.change(db, ids["notes"], {"enabled": False})
        later = await tools.create(db, made.workspace_id, LATER)
        await agents.assign_tools(db, made.workspace_id, made.agent_id, [*ids.values(), later["id"]])


def agent_part(request: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a request that comes from the agent: all but the conversation."""
    system = [message for message in request["messages"] if message["role"] == "system"]
    return {name: value for name, value in request.items() if name != "messages"} | {"system": system}


def offered(request: dict[str, Any]) -> list[str]:
    return sorted(one["function"]["name"] for one in request["tools"])


def pinned(session: Conversation, turn_ids: Sequence[UUID | None]) -> list[tuple[Any, ...]]:
    query = "SELECT agent_version, agent_digest FROM turns WHERE id = ANY (%s) ORDER BY opened_at_offset"
    return session.stack.rows(query, list(turn_ids))


def request_count(stack: Stack, name: str) -> int:
    requests: int = stack.counts()["tools"].get(name, {}).get("requests", 0)
    return requests


@pytest.mark.parametrize("killed", [False, True], ids=["between steps", "after its worker was killed"])
async def test_agent_changes_apply_from_the_next_turn(stack: Stack, database: Database, dispatcher: Dispatcher, killed: bool):
    session = await start_session(stack, database, dispatcher)
    worker = stack.worker()
    before, notes = request_count(stack, "orders_lookup"), request_count(stack, "notes")
    waits = '"fault": "hang"' if killed else '"latency_ms": 2500'
    text = f'[[call orders_lookup {{"order": 41, {waits}}}]] [[then notes {{"note": 1}}]] pinned, killed: {killed}'
    turn_id = await session.send(text)
    await wait_until(lambda: request_count(stack, "orders_lookup") > before)

    await change_everything(session)
    if killed:
        worker.kill()
        worker = stack.worker()

    assert await session.ended(turn_id) == ("done", None)
    first, *later = await session.model_requests(text)
    assert len(later) == 2
    assert [agent_part(request) for request in later] == [agent_part(first)] * 2
    assert (first["model"], offered(first)) == ("gpt-4o", ["notes", "orders_lookup"])
    assert "Be brief." in first["messages"][0]["content"]
    # The tools' integrations are read with each claim, so a later claim knows that a tool is disabled and does not call it.
    results = [content["status"] for kind, _, content in session.log() if kind == "tool_result"]
    assert (results, request_count(stack, "notes")) == (
        (["succeeded", "failed"], notes) if killed else (["succeeded", "succeeded"], notes + 1)
    )

    then = f"and now? killed: {killed}"
    following = await session.send(then)
    assert await session.ended(following) == ("done", None)
    [request] = await session.model_requests(then)
    assert (request["model"], offered(request)) == ("gpt-4.1", ["orders_lookup", "refunds"])
    assert "Be verbose." in request["messages"][0]["content"]
    assert "Be brief." not in request["messages"][0]["content"]
    assert "number" in str(request["tools"])
    (old_version, old_digest), (version, digest) = pinned(session, [turn_id, following])
    assert old_version == 1 < version
    assert old_digest != digest
    stack.drained()
    assert violations(stack.database_url) == {}
    assert worker.stop() == 0


@pytest.mark.parametrize("change", ["archived", "deleted"])
async def test_agent_deleted_during_a_turn(stack: Stack, database: Database, dispatcher: Dispatcher, change: str):
    session = await start_session(stack, database, dispatcher)
    doomed = stack.worker()
    text = f"[[fault hang]] {change} meanwhile"
    turn_id = await session.send(text)
    await session.requests(text, 1)

    async with database.transaction(session.made.workspace_id) as db:
        if change == "deleted":
            await agents.delete(db, session.made.agent_id)
        else:
            await agents.change(db, session.made.agent_id, {"status": "archived", "system_prompt": "Say nothing."})
    doomed.kill()
    worker = stack.worker()

    assert await session.ended(turn_id) == ("done", None)
    first, again = await session.model_requests(text)
    assert agent_part(first) == agent_part(again)
    stack.drained()
    assert violations(stack.database_url) == {}
    assert worker.stop() == 0


async def test_unchanged_agent_snapshot_is_stored_once(stack: Stack, database: Database, dispatcher: Dispatcher):
    session = await start_session(stack, database, dispatcher)
    worker = stack.worker()

    async def stored() -> tuple[int, int]:
        turn_ids = [await session.send(f"the {number}th", "enqueue") for number in range(3)]
        for turn_id in turn_ids:
            assert await session.ended(turn_id) == ("done", None)
        agent_id = session.made.agent_id
        rows = session.stack.one("SELECT count(*) FROM agent_snapshots WHERE agent_id = %s", agent_id)
        return rows, len(set(pinned(session, turn_ids)))

    assert await stored() == (1, 1)
    async with database.transaction(session.made.workspace_id) as db:
        await agents.change(db, session.made.agent_id, {"system_prompt": "Be kind."})
    assert await stored() == (2, 1)
    assert worker.stop() == 0
