"""Tool health with real workers: an unhealthy tool is not used, the next integration takes over, and a recovered tool is used again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import psycopg
import pytest

from store.database import Database
from tasks.dispatcher import Dispatcher
from tests.support.conversation import Conversation, talk, tool
from tests.support.factories import Tenant
from tests.support.servers import free_port, until
from tests.support.stack import Process, Stack

FAST_CHECKS = {
    "TURNLINE_HEALTH_EVERY_S": "1",
    "TURNLINE_HEALTH_TIMEOUT_S": "2",
    "TURNLINE_HEALTH_DEGRADED_AFTER": "1",
    "TURNLINE_HEALTH_UNHEALTHY_AFTER": "3",
}


@pytest.fixture(autouse=True)
def fast_checks(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "env", stack.env | FAST_CHECKS)


@pytest.fixture
def tool_server(stack: Stack) -> Iterator[tuple[str, Any]]:
    """Provide the address of a tool server and a function that starts it; the test may stop and restart it."""
    port = free_port()
    running: list[Process] = []

    def start() -> Process:
        process = stack.start("-m", "sandbox", "--port", str(port))
        until(lambda: process.logged("listening"), 20)
        running.append(process)
        return process

    yield f"http://127.0.0.1:{port}/tools/orders_lookup", start
    for process in running:
        process.stop()


def status(stack: Stack, made: Tenant, target: str = "orders_lookup") -> str:
    query = "SELECT health_status FROM tool_integrations WHERE workspace_id = %s AND target_id = %s"
    found: str = stack.one(query, made.workspace_id, target)
    return found


def run_job(stack: Stack, *arguments: str) -> dict[str, Any]:
    done = stack.turnline("jobs", "run", "tools.check_all_health", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    counts: dict[str, Any] = json.loads(done.stdout)["counts"]
    return counts


def check_until(stack: Stack, made: Tenant, wanted: str, target: str = "orders_lookup") -> None:
    """Run the health check, as the schedule does, until the integration has the status `wanted`."""

    def look() -> bool:
        with psycopg.connect(stack.database_url, autocommit=True) as db:
            db.execute("UPDATE tool_integrations SET next_health_check = now() WHERE workspace_id = %s", [made.workspace_id])
        run_job(stack)
        return status(stack, made, target) == wanted

    until(look, 90)


def add_integration(stack: Stack, made: Tenant, url: str, *, priority: int, target: str) -> None:
    with psycopg.connect(stack.database_url, autocommit=True) as db:
        db.execute(
            "INSERT INTO tool_integrations (workspace_id, tool_id, integration_type, target_id, configuration, priority)"
            " SELECT workspace_id, id, 'custom_tool', %s, jsonb_build_object('url', %s::text, 'timeout_s', 2), %s FROM tools"
            " WHERE workspace_id = %s",
            [target, url, priority, made.workspace_id],
        )


async def offered(session: Conversation, text: str) -> list[str]:
    (request,) = await session.model_requests(text)
    return [one["function"]["name"] for one in request.get("tools") or []]


async def test_unhealthy_tool_is_not_offered_until_it_recovers(
    stack: Stack, database: Database, dispatcher: Dispatcher, tool_server: tuple[str, Any]
):
    url, start = tool_server
    mine = tool(stack, "pure") | {"integration": {"configuration": {"url": url}}}
    session = await talk(stack, database, dispatcher, mine)
    worker = stack.worker()
    server = start()
    check_until(stack, session.made, "healthy")
    assert await session.ended(await session.send("first")) == ("done", None)

    server.stop()
    check_until(stack, session.made, "unhealthy")
    assert await session.ended(await session.send("second")) == ("done", None)

    start()
    check_until(stack, session.made, "healthy")
    assert await session.ended(await session.send("third")) == ("done", None)
    assert [await offered(session, text) for text in ("first", "second", "third")] == [["orders_lookup"], [], ["orders_lookup"]]
    changes = stack.rows(
        "SELECT from_status, to_status FROM tool_health_changes WHERE workspace_id = %s ORDER BY id", session.made.workspace_id
    )
    assert changes == [("unknown", "healthy"), ("healthy", "degraded"), ("degraded", "unhealthy"), ("unhealthy", "healthy")]
    assert worker.stop() == 0


async def test_next_integration_takes_over_from_an_unhealthy_one(stack: Stack, database: Database, dispatcher: Dispatcher):
    dead = f"http://127.0.0.1:{free_port()}/tools/orders_lookup"
    session = await talk(stack, database, dispatcher, tool(stack, "idempotent"))
    add_integration(stack, session.made, dead, priority=5, target="dead")
    check_until(stack, session.made, "unhealthy", "dead")
    worker = stack.worker()

    assert await session.ended(await session.send('[[call orders_lookup {"order": 41}]] taken over')) == ("done", None)

    used = "SELECT i.target_id FROM tool_calls c JOIN tool_integrations i ON i.id = c.integration_id WHERE c.workspace_id = %s"
    assert stack.rows(used, session.made.workspace_id) == [("orders_lookup",)]
    assert worker.stop() == 0


async def test_failed_calls_count_as_health_observations(stack: Stack, database: Database, dispatcher: Dispatcher):
    dead = f"http://127.0.0.1:{free_port()}/tools/orders_lookup"
    mine = tool(stack, "pure") | {"integration": {"configuration": {"url": dead, "timeout_s": 2}}}
    session = await talk(stack, database, dispatcher, mine)
    worker = stack.worker()

    assert await session.ended(await session.send('[[call orders_lookup {"order": 41}]] failed')) == ("done", None)

    until(lambda: status(stack, session.made) == "degraded", 30)
    assert worker.stop() == 0


async def test_answered_calls_outweigh_failed_probes(
    stack: Stack, database: Database, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(stack, "env", stack.env | {"TURNLINE_HEALTH_EVERY_S": "3600"})
    session = await talk(stack, database, dispatcher, tool(stack, "pure"))
    with psycopg.connect(stack.database_url, autocommit=True) as db:
        degraded = "UPDATE tool_integrations SET health_status = 'degraded', error_count = 4 WHERE workspace_id = %s"
        db.execute(degraded, [session.made.workspace_id])
    worker = stack.worker()
    answers = "SELECT error_count, answers_in_row FROM tool_integrations WHERE workspace_id = %s"

    assert await session.ended(await session.send('[[call orders_lookup {"order": 41}]] once')) == ("done", None)
    until(lambda: stack.rows(answers, session.made.workspace_id) == [(0, 1)], 30)
    assert await session.ended(await session.send('[[call orders_lookup {"order": 42}]] again')) == ("done", None)
    until(lambda: status(stack, session.made) == "healthy", 30)
    assert worker.stop() == 0


async def test_killed_health_check_is_repeated_and_concurrent_checks_probe_once(stack: Stack, database: Database, dispatcher: Dispatcher):
    made = [await talk(stack, database, dispatcher, tool(stack, "pure")) for _ in range(12)]
    ids = [one.made.workspace_id for one in made]
    hanging = f"{stack.sandbox_url}/tools/orders_lookup?fault=hang"
    with psycopg.connect(stack.database_url, autocommit=True) as db:
        db.execute("UPDATE tool_integrations SET next_health_check = now() + interval '1 day'")
        db.execute(
            "UPDATE tool_integrations SET next_health_check = NULL, configuration = jsonb_set(configuration, '{health}',"
            " jsonb_build_object('url', %s::text)) WHERE workspace_id = ANY (%s)",
            [hanging, ids],
        )
    killed = stack.start("-m", "cli.main", "jobs", "run", "tools.check_all_health")
    scheduled = "SELECT count(*) FROM tool_integrations WHERE workspace_id = ANY (%s) AND next_health_check > now()"
    until(lambda: stack.one(scheduled, ids) == 12, 30)
    killed.kill()
    with psycopg.connect(stack.database_url, autocommit=True) as db:
        db.execute(
            "UPDATE tool_integrations SET next_health_check = next_health_check - interval '61 seconds', configuration = configuration"
            " - 'health' WHERE workspace_id = ANY (%s) AND last_health_check IS NULL",
            [ids],
        )
    two = [stack.start("-m", "cli.main", "jobs", "run", "tools.check_all_health", "--json") for _ in range(2)]
    codes = [process.popen.wait(90) for process in two]

    assert codes == [0, 0]
    runs: list[tuple[UUID, dict[str, int]]] = stack.rows(
        "SELECT id, counts FROM job_runs WHERE job = 'tools.check_all_health' AND finished_at IS NOT NULL ORDER BY id DESC LIMIT 2"
    )
    assert sum(counts.get("checked", 0) for _, counts in runs) >= 12
    healthy = "SELECT count(*) FROM tool_integrations WHERE workspace_id = ANY (%s) AND health_status = 'healthy'"
    assert stack.one(healthy, ids) == 12
