"""What operators see in Flower: tasks by the names and ids that lead to turns, and no customer's words."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from typing import Any

import pytest
from celery import Celery

from store import messages
from store.database import Database
from tasks.ring import Ringer, task_id
from tests.factories import tenant
from tests.pipeline.stack import FLOWER_AUTH, Stack
from tests.servers import free_port, until


@pytest.fixture(scope="module")
def flower(stack: Stack) -> str:
    port = free_port()
    stack.flower(port)
    stack.worker()
    return f"http://127.0.0.1:{port}"


def get(url: str, *, password: bool = True) -> Any:
    """What Flower answers: the JSON, or the status where it refuses."""
    request = urllib.request.Request(url)
    if password:
        request.add_header("Authorization", "Basic " + base64.b64encode(FLOWER_AUTH.encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code


async def test_a_finished_turns_task_is_found_by_the_turns_id(stack: Stack, flower: str, database: Database, ringer: Ringer):
    made = await tenant(database)
    accepted = await messages.accept(database, made.workspace_id, made.session_id, "flower-canary")
    assert accepted.turn_id is not None
    ringer.ring(accepted.turn_id)
    stack.drained()
    url = f"{flower}/api/task/info/{task_id(accepted.turn_id, 0)}"

    until(lambda: isinstance(get(url), dict) and get(url)["state"] == "SUCCESS")

    assert get(url)["name"] == "turns.advance"
    assert str(accepted.turn_id) in get(url)["args"]


async def test_a_message_by_celery_shows_none_of_its_words(stack: Stack, flower: str, database: Database):
    made = await tenant(database)
    producer = Celery(broker=stack.broker_url)
    sent = producer.send_task(
        "messages.receive",
        kwargs={"session_id": str(made.session_id), "message_key": "k", "text": "flower-canary"},
        queue="messages",
    )
    producer.close()
    url = f"{flower}/api/task/info/{sent.id}"

    until(lambda: isinstance(get(url), dict) and get(url)["state"] == "SUCCESS")

    everything = json.dumps(get(f"{flower}/api/tasks")) + json.dumps(get(url))
    assert "messages.receive" in everything
    assert "flower-canary" not in everything
    stack.drained()


@pytest.mark.parametrize("path", ["/api/tasks", "/api/workers", "/", "/workers", "/broker"])
def test_nothing_of_it_is_open_to_the_world(flower: str, path: str):
    assert get(f"{flower}{path}", password=False) == 401
