"""Flower shows operators task names and ids that lead to turns, and no customer's text."""

from __future__ import annotations

import base64
import json
import re
import urllib.error
import urllib.request
from typing import Any

import pytest
from celery import Celery
from flower import urls

from cli.standalone.commands import basic_auth_header
from cli.standalone.process_utils import port_is_free
from store.conversations import intake
from store.database import Database
from tasks.dispatcher import Dispatcher, task_id
from tests.support.factories import tenant
from tests.support.servers import free_port, until
from tests.support.stack import FLOWER_AUTH, Process, Stack


@pytest.fixture(scope="module")
def flower(stack: Stack) -> str:
    port = free_port()
    stack.flower(port)
    stack.worker(queues="turns,messages,tools")
    return f"http://127.0.0.1:{port}"


def get(url: str) -> Any:
    """Return Flower's JSON, or the status code if it refuses the request."""
    request = urllib.request.Request(url, headers=basic_auth_header(FLOWER_AUTH))
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code


async def test_flower_finds_a_task_by_its_turn_id(stack: Stack, flower: str, database: Database, dispatcher: Dispatcher):
    made = await tenant(database)
    accepted = await intake.accept(database, made.workspace_id, made.session_id, "flower-canary")
    assert accepted.turn_id is not None
    dispatcher.dispatch(accepted.turn_id)
    stack.drained()
    url = f"{flower}/api/task/info/{task_id(accepted.turn_id, 0)}"

    until(lambda: isinstance(get(url), dict) and get(url)["state"] == "SUCCESS")

    assert get(url)["name"] == "turns.advance"
    assert str(accepted.turn_id) in get(url)["args"]


async def test_flower_hides_the_text_of_messages(stack: Stack, flower: str, database: Database):
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


def paths() -> list[str]:
    """Return one path for each of Flower's routes, and paths of a static file and of an unknown page."""
    handlers: list[Any] = urls.handlers
    patterns = [entry.regex.pattern if hasattr(entry, "regex") else entry[0] for entry in handlers]
    made = {re.sub(r"\\.\*|\(\.[+*]\)", "x", pattern).rstrip("$").removesuffix("/?") for pattern in patterns}
    return sorted(f"/{path.lstrip('/')}" for path in made | {"/static/favicon.ico", "/favicon.ico", "/robots.txt", "/login/", "/nothing"})


def status(url: str, method: str = "GET", **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method, headers=headers), timeout=10) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize("prefix", ["", "/ops/flower"])
def test_every_flower_route_requires_the_password(stack: Stack, flower: str, prefix: str):
    url = flower
    if prefix:
        port = free_port()
        stack.flower(port, f"--url_prefix={prefix[1:]}", prefix=prefix)
        url = f"http://127.0.0.1:{port}{prefix}"
    wrong = {"Authorization": "Basic " + base64.b64encode(b"operator:guessed").decode()}

    assert len(paths()) > 35
    for path in paths():
        for method in ("GET", "POST", "OPTIONS", "HEAD", "PUT"):
            assert status(url + path, method) in (401, 403), f"{method} {path}"
        assert status(url + path, **wrong) in (401, 403), path
    mine = basic_auth_header(FLOWER_AUTH)
    assert [status(url + path, **mine) for path in ("/workers", "/metrics", "/healthcheck", "/static/favicon.ico")] == [200] * 4
    if prefix:
        assert status(url.removesuffix(prefix) + "/", **mine) == 404


def test_flower_without_a_password_refuses_every_request(stack: Stack):
    port = free_port()
    env = {name: value for name, value in stack.env.items() if name != "FLOWER_BASIC_AUTH"}
    argv = ("-m", "celery", "-A", "tasks", "flower", "--address=127.0.0.1", f"--port={port}")
    process = Process(stack.directory / "open.log", env | {"FLOWER_UNAUTHENTICATED_API": "true"}, *argv)
    try:
        until(lambda: process.logged("Visit me"), 30)
        until(lambda: not port_is_free(port), 20)
        assert [status(f"http://127.0.0.1:{port}{path}") for path in ("/", "/tasks", "/api/tasks", "/metrics")] == [403] * 4
    finally:
        process.kill()


def test_read_only_flower_refuses_changes(stack: Stack):
    port = free_port()
    stack.flower(port, "--read_only=True")
    url, mine = f"http://127.0.0.1:{port}", basic_auth_header(FLOWER_AUTH)

    assert status(f"{url}/tasks", **mine) == 200
    for path in paths():
        if path.startswith("/api/"):
            assert status(url + path, "POST", **mine) == 403, path


def test_flower_lists_queue_lengths(stack: Stack, flower: str):
    producer = Celery(broker=stack.broker_url)
    for _ in range(3):
        producer.send_task("usage.audit", queue="maintenance")  # no worker consumes this queue here
    producer.close()

    lengths = {queue["name"]: queue["messages"] for queue in get(f"{flower}/api/queues/length")["active_queues"]}

    assert lengths == {"turns": 0, "messages": 0, "tools": 0, "maintenance": 3}
