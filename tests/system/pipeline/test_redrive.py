"""Messages that kill their workers: dead turns, a quarantined session, and redrives. One attempt is allowed, so each claim counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from engine.errors import Conflict
from engine.sentences import sentence
from store.conversations import intake
from store.conversations import redrive as store_redrive
from store.database import Database
from tasks.dispatcher import Dispatcher
from tests.support.conversation import Conversation, talk, tool, wait_until
from tests.support.invariants import violations
from tests.support.servers import EmbeddedValkey
from tests.support.stack import Stack, running

CALL = '[[call orders_lookup {"order": 41}]]'


@pytest.fixture(scope="module")
def stack(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    settings = {"TURNLINE_TURN_MAX_ATTEMPTS": "1", "TURNLINE_TURN_MODEL_CALLS": "2"}
    with (
        EmbeddedValkey(None) as broker,
        running(Stack(database_url, broker.url, Path(tmp_path_factory.mktemp("stack")), **settings)) as made,
    ):
        made.beat()
        yield made


def turnline(stack: Stack, *arguments: str) -> str:
    done = stack.turnline(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def redrive(session: Conversation, turn_id: UUID | None, *, from_scratch: bool = False) -> None:
    assert turn_id is not None
    done = await store_redrive.redrive(
        session.database, session.made.workspace_id, turn_id, from_scratch=from_scratch, by="ops", in_flight_limit=200
    )
    assert done.to_dispatch is not None
    session.dispatcher.dispatch(done.to_dispatch)


def tool_requests(stack: Stack, turn_id: UUID | None) -> list[dict[str, int]]:
    """Return the sandbox's counts of requests and effects for each idempotency key of the turn, by step."""
    by_key = stack.counts()["tools"].get("orders_lookup", {}).get("by_key", {})
    return [
        by_key.get(key, {}) for (key,) in stack.rows("SELECT idempotency_key FROM tool_calls WHERE turn_id = %s ORDER BY step", turn_id)
    ]


def statuses(session: Conversation) -> list[str]:
    return [content["status"] for kind, _, content in session.log() if kind == "status_update"]


def model_calls(stack: Stack, turn_id: UUID | None) -> list[tuple[Any, ...]]:
    return stack.rows("SELECT step, state FROM model_calls WHERE turn_id = %s ORDER BY step, attempt", turn_id)


@pytest.mark.timeout(240)
async def test_three_dead_turns_quarantine_the_session_until_a_redrive(stack: Stack, database: Database, dispatcher: Dispatcher):
    """Messages of the quarantined session wait, others are answered. After a redrive of the last dead turn, the waiting ones are too."""
    session, other = await talk(stack, database, dispatcher), await talk(stack, database, dispatcher)
    dead: list[UUID | None] = []
    for number in range(3):
        doomed = stack.worker()
        await wait_until(lambda: not dead or stack.status(dead[-1]) == "dead")
        text = f"[[fault hang]] deadly {number}"
        dead.append(await session.send(text))
        await session.requests(text, 1)
        doomed.kill()
    worker = stack.worker()
    assert await session.ended(dead[-1]) == ("dead", "AttemptsSpent")
    detail = stack.one("SELECT error_detail FROM turns WHERE id = %s", dead[-1])
    assert sentence(detail) == "claimed 1 times without an outcome; last: WorkerLost, while it waited for the model"
    assert statuses(session) == ["dead", "dead", "dead", "quarantined"]
    assert stack.one("SELECT quarantined_at IS NOT NULL FROM sessions WHERE id = %s", session.made.session_id)

    queued = await session.send("I am still here.")
    # The other session's turns are not dispatched. That they are answered shows that the sweep ran and skipped the quarantined session.
    for text in ("Hello?", "And you?"):
        accepted = await intake.accept(database, other.made.workspace_id, other.made.session_id, text)
        assert await other.ended(accepted.turn_id) == ("done", None)
    assert stack.rows("SELECT status, attempts, dispatched_at FROM turns WHERE id = %s", queued) == [("queued", 0, None)]
    assert "its session is quarantined" in " ".join(turnline(stack, "turns", "--dead").split())

    output = turnline(stack, "redrive", str(dead[-1]))

    assert "was dispatched" in output
    assert await session.ended(dead[-1]) == ("done", None)
    assert await session.ended(queued) == ("done", None)
    assert statuses(session) == ["dead", "dead", "dead", "quarantined", "redriven"]
    replies = [content["text"] for kind, _, content in session.log() if kind == "agent_message"]
    assert ["deadly 2" in replies[0], "I am still here." in replies[1], len(replies)] == [True, True, 2]
    assert stack.rows("SELECT dead_in_row, quarantined_at FROM sessions WHERE id = %s", session.made.session_id) == [(0, None)]
    with pytest.raises(Conflict, match="later turn"):
        await redrive(session, dead[0])
    stack.drained()
    assert violations(stack.database_url) == {}
    assert worker.stop() == 0


@pytest.mark.timeout(240)
async def test_redriven_turn_repeats_only_unfinished_calls(stack: Stack, database: Database, dispatcher: Dispatcher):
    again, scratch = [await talk(stack, database, dispatcher, tool(stack, "idempotent")) for _ in range(2)]
    unsafe = await talk(stack, database, dispatcher, tool(stack, "unsafe"))
    again_text = f"{CALL} [[fault hang x2 after 1]] from its last step, twice"
    scratch_text = f"{CALL} [[fault hang after 1]] from scratch"
    unsafe_text = '[[call orders_lookup {"order": 41, "fault": "effect-then-timeout"}]] unsafe'
    doomed = stack.worker()
    again_turn, scratch_turn, unsafe_turn = await again.send(again_text), await scratch.send(scratch_text), await unsafe.send(unsafe_text)
    await again.requests(again_text, 2)
    await scratch.requests(scratch_text, 2)
    await wait_until(lambda: tool_requests(stack, unsafe_turn) == [{"requests": 1, "effects": 1}])
    doomed.kill()
    doomed = stack.worker()
    for session, turn_id in ((again, again_turn), (scratch, scratch_turn), (unsafe, unsafe_turn)):
        assert await session.ended(turn_id) == ("dead", "AttemptsSpent")
    with pytest.raises(Conflict, match="must not be repeated"):
        await redrive(unsafe, unsafe_turn, from_scratch=True)
    stack.drained()
    assert violations(stack.database_url) == {}

    await redrive(again, again_turn)
    await redrive(scratch, scratch_turn, from_scratch=True)
    await redrive(unsafe, unsafe_turn)

    # From scratch: everything is repeated, with new keys, and the model does not see the earlier steps.
    assert await scratch.ended(scratch_turn) == ("done", None)
    assert stack.counts()["by_text"][scratch_text] == 4
    assert tool_requests(stack, scratch_turn) == [{"requests": 1, "effects": 1}] * 2
    assert model_calls(stack, scratch_turn) == [(0, "settled"), (1, "unknown"), (1, "settled"), (2, "settled")]
    assert await requested_roles(scratch, scratch_text) == [["user"], ["user", "assistant", "tool"]] * 2
    # An unsafe tool that ran is not called again; the model gets the result "unknown".
    assert await unsafe.ended(unsafe_turn) == ("done", None)
    assert tool_requests(stack, unsafe_turn) == [{"requests": 1, "effects": 1}]
    assert "unknown" in next(content["status"] for kind, _, content in unsafe.log() if kind == "tool_result")
    # From its last step: the tool's result stays; only the model call that hung is made again. It hangs once more.
    await again.requests(again_text, 3)
    doomed.kill()
    worker = stack.worker()
    assert await again.ended(again_turn) == ("dead", "AttemptsSpent")
    stack.drained()
    assert violations(stack.database_url) == {}, "a turn that died twice has two dead events"
    await redrive(again, again_turn)
    assert await again.ended(again_turn) == ("done", None)
    assert statuses(again) == ["dead", "redriven", "dead", "redriven"]
    assert stack.counts()["by_text"][again_text] == 4
    assert tool_requests(stack, again_turn) == [{"requests": 1, "effects": 1}]
    assert model_calls(stack, again_turn) == [(0, "settled"), (1, "unknown"), (1, "unknown"), (1, "settled")]
    endings = stack.one("SELECT endings FROM turns WHERE id = %s", again_turn)
    assert [one["error_class"] for one in endings] == ["WorkerLost", "AttemptsSpent"] * 2
    stack.drained()
    assert violations(stack.database_url) == {}
    assert worker.stop() == 0


async def requested_roles(session: Conversation, text: str) -> list[list[str]]:
    """Return the roles of the messages in each request that ends with `text`, without system messages."""
    requests = await session.model_requests(text)
    return [[message["role"] for message in one["messages"] if message["role"] != "system"] for one in requests]


async def test_redriven_turn_gets_new_limits(stack: Stack, database: Database, dispatcher: Dispatcher):
    worker = stack.worker()
    session = await talk(stack, database, dispatcher, tool(stack, "idempotent"))
    text = f'{CALL} [[then orders_lookup {{"order": 42}}]] [[then orders_lookup {{"order": 43}}]] three steps'
    turn_id = await session.send(text)
    assert await session.ended(turn_id) == ("failed", "BudgetSpent")
    assert stack.counts()["by_text"][text] == 2

    await redrive(session, turn_id)

    assert await session.ended(turn_id) == ("done", None)
    assert stack.counts()["by_text"][text] == 4
    assert tool_requests(stack, turn_id) == [{"requests": 1, "effects": 1}] * 3
    assert statuses(session) == ["failed", "redriven"]
    stack.drained()
    assert violations(stack.database_url) == {}
    assert worker.stop() == 0
