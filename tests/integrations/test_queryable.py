"""Queryable tools: before a call is sent again its status is queried; without a clear status the outcome is unknown."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from engine.enums import Effect, ToolStatus
from engine.events import ToolOutcome
from integrations.executor import Performer
from integrations.tools import retries
from sandbox.server import Sandbox
from tests.support.http_clients import MakeHttpClients
from tests.support.http_servers import Handler, Request, answering, free_port, never, reset, response, serve
from tests.support.http_tools import OK, SECRET, call_tool, make_tool

DONE = response({"done": True, "result": {"paid": True}})
NOT_DONE = response({"done": False}, 404)
ANY_OBJECT = {"type": "object"}


@pytest.fixture
def performer(make_clients: MakeHttpClients) -> Performer:
    clients = make_clients(tool_timeout_s=0.5)
    return Performer(clients.settings, clients)


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox() as running:
        yield running


@pytest.fixture
def quick_confirmation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the wait before "not executed" is believed. The real time has its own test."""
    monkeypatch.setattr(retries, "CONFIRM_NOT_DONE_AFTER_S", 0.05)


def status_of(url: str, **more: Any) -> dict[str, Any]:
    return {"url": f"{url}/status", "query": {"key": "{idempotency_key}"}, **more}


async def call_sandbox(performer: Performer, sandbox: Sandbox, effect: Effect, *, begun: bool = False, **arguments: Any) -> ToolOutcome:
    """Call the sandbox's tool. Unless idempotent, it has its effect at every request, even with the same key."""
    call_arguments = {"order": 41, "repeats": effect is not Effect.IDEMPOTENT, **arguments}
    address = f"{sandbox.url}/tools/orders_lookup"
    status = {"status": status_of(address, result="result")} if effect is Effect.QUERYABLE else {}
    tool_spec = make_tool(address, effect, path="", parameters=ANY_OBJECT, **status)
    return await call_tool(performer, tool_spec, call_arguments, begun=begun)


def effects_of(sandbox: Sandbox) -> int:
    return sandbox.counts.tool("orders_lookup").effects


@pytest.mark.usefixtures("quick_confirmation")
@pytest.mark.parametrize(
    ("fault", "effect", "status", "requests", "effects"),
    [
        ("500", "pure", "succeeded", 2, 1),
        ("500", "idempotent", "succeeded", 2, 1),
        ("500", "queryable", "succeeded", 2, 1),
        ("500", "unsafe", "unknown", 1, 0),
        ("500 x9", "queryable", "failed", 3, 0),
        ("effect-then-500", "pure", "succeeded", 2, 2),
        ("effect-then-500", "idempotent", "succeeded", 2, 1),
        ("effect-then-500", "queryable", "succeeded", 1, 1),
        ("effect-then-500", "unsafe", "unknown", 1, 1),
        ("execute-then-drop", "idempotent", "succeeded", 2, 1),
        ("execute-then-drop", "queryable", "succeeded", 1, 1),
        ("execute-then-drop", "unsafe", "unknown", 1, 1),
        ("effect-then-timeout", "idempotent", "succeeded", 2, 1),
        ("effect-then-timeout", "queryable", "succeeded", 1, 1),
        ("effect-then-timeout", "unsafe", "unknown", 1, 1),
        ("hang", "queryable", "succeeded", 2, 1),
        ("hang", "unsafe", "unknown", 1, 0),
        ("reset", "queryable", "succeeded", 2, 1),
        ("reset-mid-body", "queryable", "succeeded", 1, 1),
        ("reset-mid-body", "unsafe", "unknown", 1, 1),
        ("hang-mid-body", "queryable", "succeeded", 1, 1),
        ("redirect-metadata", "queryable", "failed", 1, 0),
        ("redirect-metadata", "unsafe", "unknown", 1, 0),
        ("429", "queryable", "succeeded", 2, 1),
        ("429", "unsafe", "succeeded", 2, 1),
        ("401", "queryable", "failed", 1, 0),
        ("truncated-json", "queryable", "failed", 1, 1),
        ("truncated-json", "unsafe", "failed", 1, 1),
    ],
)
async def test_outcome_of_each_fault(
    performer: Performer, sandbox: Sandbox, fault: str, effect: str, status: str, requests: int, effects: int
):
    outcome = await call_sandbox(performer, sandbox, Effect(effect), fault=fault)

    assert (outcome.status, outcome.requests, effects_of(sandbox)) == (status, requests, effects), outcome.error
    assert sandbox.counts.tool("orders_lookup").requests == requests
    assert ("may or may not have happened" in (outcome.error or "")) is (status == "unknown")
    if status == "succeeded":
        assert outcome.result["paid"] is True


@pytest.mark.usefixtures("quick_confirmation")
@pytest.mark.parametrize(
    ("fault", "status", "queries"),
    [
        ("500", "succeeded", 2),
        ("500 x2", "succeeded", 3),
        ("500 x3", "unknown", 3),
        ("reset", "succeeded", 2),
        ("reset x9", "unknown", 3),
        ("hang", "succeeded", 2),
        ("truncated-json", "succeeded", 2),
        ("truncated-json x9", "unknown", 3),
        ("html x9", "unknown", 3),
        ("oversized x9", "unknown", 3),
        ("429-retry-after-long", "unknown", 1),
        ("401", "unknown", 1),
        ("redirect-metadata", "unknown", 1),
    ],
)
async def test_a_failed_status_query_does_not_mean_not_executed(
    performer: Performer, sandbox: Sandbox, fault: str, status: str, queries: int
):
    outcome = await call_sandbox(performer, sandbox, Effect.QUERYABLE, fault="effect-then-500", status_fault=fault)

    assert (outcome.status, outcome.requests, effects_of(sandbox)) == (status, 1, 1), outcome.error
    assert sandbox.counts.tool("orders_lookup").status_requests == queries


@pytest.mark.usefixtures("quick_confirmation")
@pytest.mark.parametrize(
    ("status_answer", "status", "requests", "result"),
    [
        (DONE, "succeeded", 0, {"paid": True}),
        (NOT_DONE, "succeeded", 1, {"paid": False}),
        (response("{}", 500), "unknown", 0, None),
        (response("{}", 401), "unknown", 0, None),
        (response("{}", 202), "unknown", 0, None),
        (response("{}", 409), "unknown", 0, None),
    ],
    ids=["200", "404", "500", "401", "202", "409"],
)
async def test_a_begun_call_is_repeated_only_if_its_status_says_no(
    performer: Performer, status_answer: bytes, status: str, requests: int, result: Any
):
    async with serve(answering(response({"paid": False}))) as server, serve(answering(status_answer)) as ledger:
        tool_spec = make_tool(server, Effect.QUERYABLE, status=status_of(ledger.url, result="result"))
        outcome = await call_tool(performer, tool_spec, begun=True)

    assert (outcome.status, outcome.requests, len(server.requests), outcome.result) == (status, requests, requests, result)
    assert outcome.integration_id == tool_spec.integrations[0].id
    assert len(ledger.requests) >= 1


async def test_a_status_that_lags_does_not_cause_a_repetition(performer: Performer):
    """The connection breaks while the server still works; the status says no first, and yes a moment later."""
    async with serve(reset_connection) as server, serve(answering(NOT_DONE, NOT_DONE, DONE)) as ledger:
        outcome = await call_tool(performer, make_tool(server, Effect.QUERYABLE, status=status_of(ledger.url)))

    assert (outcome.status, len(server.requests), len(ledger.requests)) == (ToolStatus.SUCCEEDED, 1, 3)


@pytest.mark.parametrize("code", [202, 409, 423])
async def test_the_status_of_a_call_in_progress_is_queried_again(performer: Performer, code: int):
    async with serve(reset_connection) as server, serve(answering(response("{}", code), DONE)) as ledger:
        outcome = await call_tool(performer, make_tool(server, Effect.QUERYABLE, status=status_of(ledger.url)))

    assert (outcome.status, len(server.requests), len(ledger.requests)) == (ToolStatus.SUCCEEDED, 1, 2)


async def test_not_executed_must_be_confirmed_after_a_second(performer: Performer):
    clock = asyncio.get_running_loop().time
    queried_at: list[float] = []

    async def answer_not_done(_request: Request, writer: asyncio.StreamWriter) -> None:
        queried_at.append(clock())
        writer.write(NOT_DONE)

    async with serve(answering(OK)) as server, serve(answer_not_done) as ledger:
        outcome = await call_tool(performer, make_tool(server, Effect.QUERYABLE, status=status_of(ledger.url)), begun=True)

    assert (outcome.status, len(server.requests)) == (ToolStatus.SUCCEEDED, 1)
    assert len(queried_at) >= 2
    assert queried_at[-1] - queried_at[0] >= 0.9


async def reset_connection(_request: Request, writer: asyncio.StreamWriter) -> None:
    reset(writer)


async def test_the_status_request_is_built_from_the_configuration(performer: Performer):
    status = {
        "url": "/by/{idempotency_key}/{id}?v=1",
        "headers": {"X-A": "1"},
        "query": {"who": "{note} of {id}", "full": True},
        "secret_headers": {"Authorization": "Bearer {{key}}"},
    }
    async with serve(reset_connection) as server, serve(answering(DONE)) as ledger:
        for method in ("GET", "POST"):
            configured = status | {"url": ledger.url + str(status["url"]), "method": method}
            tool_spec = make_tool(
                server, Effect.QUERYABLE, status=configured, secrets={"key": SECRET}, parameter_mapping={"id": "order", "note": "`a&b`"}
            )
            assert (await call_tool(performer, tool_spec)).status is ToolStatus.SUCCEEDED

    for sent, method in zip(ledger.requests, ("GET", "POST"), strict=True):
        assert (sent.method, urlsplit(sent.target).path) == (method, "/by/key-1/41")
        assert parse_qsl(urlsplit(sent.target).query) == [("v", "1"), ("who", "a&b of 41"), ("full", "true")]
        expected = {"idempotency-key": "key-1", "authorization": f"Bearer {SECRET}", "x-a": "1", "accept": "application/json"}
        assert {name: sent.headers[name] for name in expected} == expected
    assert ledger.requests[0].body == b""
    assert ledger.requests[1].json == {"idempotency_key": "key-1"}


@pytest.mark.usefixtures("quick_confirmation")
@pytest.mark.parametrize(
    ("answer", "done", "happened"),
    [
        ({"state": "paid"}, "state == 'paid'", True),
        ({"state": "none"}, "state == 'paid'", False),
        ({"count": 1}, "count", True),
        ({"count": 0}, "count", False),
        ({"found": []}, "found", False),
        ({"found": [{"id": 1}]}, "found[0]", True),
        ({"other": 1}, "state", None),
        ({"state": None}, "state", None),
        (None, "state", None),
        ({"state": "paid"}, "length(other) > `0`", None),
    ],
)
async def test_status_done_expression_decides(performer: Performer, answer: Any, done: str, happened: bool | None):
    body = response(answer) if answer is not None else response(b"")
    async with serve(answering(OK)) as server, serve(answering(body)) as ledger:
        outcome = await call_tool(performer, make_tool(server, Effect.QUERYABLE, status=status_of(ledger.url, done=done)), begun=True)

    assert len(server.requests) == (1 if happened is False else 0), outcome.error
    assert outcome.status is (ToolStatus.UNKNOWN if happened is None else ToolStatus.SUCCEEDED)


@pytest.mark.parametrize(
    ("settings", "status", "result", "reason"),
    [
        ({}, ToolStatus.SUCCEEDED, {"done": True, "result": {"paid": True}}, None),
        ({"response_mapping": "result.paid"}, ToolStatus.SUCCEEDED, True, None),
        ({"response_mapping": "done", "result": {"it": "result"}}, ToolStatus.SUCCEEDED, {"it": {"paid": True}}, None),
        ({"result": "result.paid", "return_schema": {"type": "array"}}, ToolStatus.FAILED, None, "It was executed, but the result"),
        ({"result": "{a:@,b:@}|" * 40 + "@"}, ToolStatus.FAILED, None, "It was executed, but the tool is not set up"),
    ],
)
async def test_result_of_an_executed_call_is_read_from_its_status(
    performer: Performer, settings: Any, status: ToolStatus, result: Any, reason: Any
):
    of_status = {name: value for name, value in settings.items() if name == "result"}
    configuration = {name: value for name, value in settings.items() if name != "result"}
    async with serve(reset_connection) as server, serve(answering(DONE)) as ledger:
        outcome = await call_tool(
            performer, make_tool(server, Effect.QUERYABLE, status=status_of(ledger.url, **of_status), **configuration)
        )

    assert (outcome.status, outcome.result) == (status, result)
    assert (reason or "") in (outcome.error or "")


async def test_secrets_are_removed_from_status_answers(performer: Performer):
    async with serve(reset_connection) as server, serve(answering(response({"key": SECRET}))) as ledger:
        outcome = await call_tool(performer, make_tool(server, Effect.QUERYABLE, status=status_of(ledger.url), secrets={"key": SECRET}))
    assert outcome.result == {"key": "[…]"}


@pytest.mark.parametrize("begun", [False, True])
async def test_status_queries_pass_the_ssrf_guard(performer: Performer, begun: bool):
    async with serve(reset_connection) as server:
        tool_spec = make_tool(server, Effect.QUERYABLE, status=status_of("http://169.254.169.254"))
        outcome = await call_tool(performer, tool_spec, begun=begun)
    assert (outcome.status, len(server.requests)) == (ToolStatus.UNKNOWN, 0 if begun else 1)
    assert "was not contacted" in (outcome.error or "")


@pytest.mark.parametrize("handler", [never, answering(NOT_DONE)], ids=["silent", "no"])
async def test_a_call_is_not_repeated_without_time_to_confirm(performer: Performer, handler: Handler):
    async with serve(reset_connection) as server, serve(handler) as ledger:
        outcome = await call_tool(performer, make_tool(server, Effect.QUERYABLE, status=status_of(ledger.url)), deadline_s=0.4)
    assert (outcome.status, len(server.requests), len(ledger.requests)) == (ToolStatus.UNKNOWN, 1, 1)


async def test_without_a_status_the_outcome_is_unknown(performer: Performer):
    async with serve(reset_connection) as server:
        outcome = await call_tool(performer, make_tool(server, Effect.QUERYABLE))
    assert (outcome.status, len(server.requests)) == (ToolStatus.UNKNOWN, 1)


async def test_an_unreachable_status_leaves_the_outcome_unknown(performer: Performer):
    async with serve(reset_connection) as server:
        outcome = await call_tool(performer, make_tool(server, Effect.QUERYABLE, status=status_of(f"http://127.0.0.1:{free_port()}")))
    assert (outcome.status, len(server.requests)) == (ToolStatus.UNKNOWN, 1)
    assert "closed the connection" in (outcome.error or "")
    assert "status address could not be reached" in (outcome.error or "")


async def test_cancelling_aborts_the_status_query(performer: Performer):
    async with serve(reset_connection) as server, serve(never) as ledger:
        task = asyncio.create_task(call_tool(performer, make_tool(server, Effect.QUERYABLE, status=status_of(ledger.url))))
        await asyncio.wait_for(ledger.arrived.wait(), 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(ledger.gone.wait(), 20)
        assert (len(server.requests), len(ledger.requests)) == (1, 1)
