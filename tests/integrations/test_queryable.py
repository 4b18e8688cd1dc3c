"""Queryable tools: whether a call happened is asked before it is sent again, and what cannot be told is unknown."""

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
from tests.support.http_servers import Handler, Request, answering, free_port, never, reset, response, serve
from tests.support.tool_calls import OK, SECRET, MakeOutside, call, tool

DONE = response({"done": True, "result": {"paid": True}})
NOT_DONE = response({"done": False}, 404)
LOOSE = {"type": "object"}


@pytest.fixture
def performer(outside: MakeOutside) -> Performer:
    made = outside(tool_timeout_s=0.5)
    return Performer(made.settings, made)


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox() as running:
        yield running


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Believe a no after a moment; what the real time is for has a test of its own."""
    monkeypatch.setattr(retries, "BELIEVED_AFTER_S", 0.05)


def status_of(url: str, **more: Any) -> dict[str, Any]:
    return {"url": f"{url}/status", "query": {"key": "{idempotency_key}"}, **more}


async def at_sandbox(performer: Performer, sandbox: Sandbox, effect: Effect, *, begun: bool = False, **arguments: Any) -> ToolOutcome:
    """Call the sandbox's tool; but for idempotent ones it does its work at every request, whatever the key."""
    asked = {"order": 41, "repeats": effect is not Effect.IDEMPOTENT, **arguments}
    address = f"{sandbox.url}/tools/orders_lookup"
    status = {"status": status_of(address, result="result")} if effect is Effect.QUERYABLE else {}
    what = tool(address, effect, path="", parameters=LOOSE, **status)
    return await call(performer, what, asked, begun=begun)


def effects_of(sandbox: Sandbox) -> int:
    return sandbox.counts.tool("orders_lookup").effects


@pytest.mark.usefixtures("soon")
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
async def test_what_a_fault_comes_to(
    performer: Performer, sandbox: Sandbox, fault: str, effect: str, status: str, requests: int, effects: int
):
    outcome = await at_sandbox(performer, sandbox, Effect(effect), fault=fault)

    assert (outcome.status, outcome.requests, effects_of(sandbox)) == (status, requests, effects), outcome.error
    assert sandbox.counts.tool("orders_lookup").requests == requests
    assert ("may or may not have happened" in (outcome.error or "")) is (status == "unknown")
    if status == "succeeded":
        assert outcome.result["paid"] is True


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(
    ("fault", "status", "asked"),
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
async def test_a_status_that_cannot_be_had_is_not_a_no(performer: Performer, sandbox: Sandbox, fault: str, status: str, asked: int):
    outcome = await at_sandbox(performer, sandbox, Effect.QUERYABLE, fault="effect-then-500", status_fault=fault)

    assert (outcome.status, outcome.requests, effects_of(sandbox)) == (status, 1, 1), outcome.error
    assert sandbox.counts.tool("orders_lookup").status_requests == asked


@pytest.mark.usefixtures("soon")
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
async def test_a_begun_call_is_asked_for_first(performer: Performer, status_answer: bytes, status: str, requests: int, result: Any):
    async with serve(answering(response({"paid": False}))) as server, serve(answering(status_answer)) as ledger:
        what = tool(server, Effect.QUERYABLE, status=status_of(ledger.url, result="result"))
        outcome = await call(performer, what, begun=True)

    assert (outcome.status, outcome.requests, len(server.requests), outcome.result) == (status, requests, requests, result)
    assert outcome.integration_id == what.integrations[0].id
    assert len(ledger.requests) >= 1


async def test_an_effect_that_shows_a_little_later_is_not_repeated(performer: Performer):
    """The call is cut off while the server is still at it; its status says no, and a moment later yes."""
    async with serve(lost) as server, serve(answering(NOT_DONE, NOT_DONE, DONE)) as ledger:
        outcome = await call(performer, tool(server, Effect.QUERYABLE, status=status_of(ledger.url)))

    assert (outcome.status, len(server.requests), len(ledger.requests)) == (ToolStatus.SUCCEEDED, 1, 3)


@pytest.mark.parametrize("code", [202, 409, 423])
async def test_a_call_that_is_still_under_way_is_asked_for_again(performer: Performer, code: int):
    async with serve(lost) as server, serve(answering(response("{}", code), DONE)) as ledger:
        outcome = await call(performer, tool(server, Effect.QUERYABLE, status=status_of(ledger.url)))

    assert (outcome.status, len(server.requests), len(ledger.requests)) == (ToolStatus.SUCCEEDED, 1, 2)


async def test_a_no_is_believed_after_a_second_of_asking(performer: Performer):
    clock = asyncio.get_running_loop().time
    asked_at: list[float] = []

    async def no(_request: Request, writer: asyncio.StreamWriter) -> None:
        asked_at.append(clock())
        writer.write(NOT_DONE)

    async with serve(answering(OK)) as server, serve(no) as ledger:
        outcome = await call(performer, tool(server, Effect.QUERYABLE, status=status_of(ledger.url)), begun=True)

    assert (outcome.status, len(server.requests)) == (ToolStatus.SUCCEEDED, 1)
    assert len(asked_at) >= 2
    assert asked_at[-1] - asked_at[0] >= 0.9


async def lost(_request: Request, writer: asyncio.StreamWriter) -> None:
    reset(writer)


async def test_what_is_asked(performer: Performer):
    status = {
        "url": "/by/{idempotency_key}/{id}?v=1",
        "headers": {"X-A": "1"},
        "query": {"who": "{note} of {id}", "full": True},
        "secret_headers": {"Authorization": "Bearer {{key}}"},
    }
    async with serve(lost) as server, serve(answering(DONE)) as ledger:
        for method in ("GET", "POST"):
            configured = status | {"url": ledger.url + str(status["url"]), "method": method}
            what = tool(
                server, Effect.QUERYABLE, status=configured, secrets={"key": SECRET}, parameter_mapping={"id": "order", "note": "`a&b`"}
            )
            assert (await call(performer, what)).status is ToolStatus.SUCCEEDED

    for sent, method in zip(ledger.requests, ("GET", "POST"), strict=True):
        assert (sent.method, urlsplit(sent.target).path) == (method, "/by/key-1/41")
        assert parse_qsl(urlsplit(sent.target).query) == [("v", "1"), ("who", "a&b of 41"), ("full", "true")]
        expected = {"idempotency-key": "key-1", "authorization": f"Bearer {SECRET}", "x-a": "1", "accept": "application/json"}
        assert {name: sent.headers[name] for name in expected} == expected
    assert ledger.requests[0].body == b""
    assert ledger.requests[1].json == {"idempotency_key": "key-1"}


@pytest.mark.usefixtures("soon")
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
async def test_how_an_answer_is_read(performer: Performer, answer: Any, done: str, happened: bool | None):
    body = response(answer) if answer is not None else response(b"")
    async with serve(answering(OK)) as server, serve(answering(body)) as ledger:
        outcome = await call(performer, tool(server, Effect.QUERYABLE, status=status_of(ledger.url, done=done)), begun=True)

    assert len(server.requests) == (1 if happened is False else 0), outcome.error
    assert outcome.status is (ToolStatus.UNKNOWN if happened is None else ToolStatus.SUCCEEDED)


@pytest.mark.parametrize(
    ("settings", "status", "result", "why"),
    [
        ({}, ToolStatus.SUCCEEDED, {"done": True, "result": {"paid": True}}, None),
        ({"response_mapping": "result.paid"}, ToolStatus.SUCCEEDED, True, None),
        ({"response_mapping": "done", "result": {"it": "result"}}, ToolStatus.SUCCEEDED, {"it": {"paid": True}}, None),
        ({"result": "result.paid", "return_schema": {"type": "array"}}, ToolStatus.FAILED, None, "It was carried out, but the result"),
        ({"result": "{a:@,b:@}|" * 40 + "@"}, ToolStatus.FAILED, None, "It was carried out, but the tool is not set up"),
    ],
)
async def test_the_result_of_a_call_that_had_happened(performer: Performer, settings: Any, status: ToolStatus, result: Any, why: Any):
    of_status = {name: value for name, value in settings.items() if name == "result"}
    rest = {name: value for name, value in settings.items() if name != "result"}
    async with serve(lost) as server, serve(answering(DONE)) as ledger:
        outcome = await call(performer, tool(server, Effect.QUERYABLE, status=status_of(ledger.url, **of_status), **rest))

    assert (outcome.status, outcome.result) == (status, result)
    assert (why or "") in (outcome.error or "")


async def test_secrets_are_cut_out_of_a_status(performer: Performer):
    async with serve(lost) as server, serve(answering(response({"key": SECRET}))) as ledger:
        outcome = await call(performer, tool(server, Effect.QUERYABLE, status=status_of(ledger.url), secrets={"key": SECRET}))
    assert outcome.result == {"key": "[…]"}


@pytest.mark.parametrize("begun", [False, True])
async def test_a_status_is_behind_the_address_guard(performer: Performer, begun: bool):
    async with serve(lost) as server:
        what = tool(server, Effect.QUERYABLE, status=status_of("http://169.254.169.254"))
        outcome = await call(performer, what, begun=begun)
    assert (outcome.status, len(server.requests)) == (ToolStatus.UNKNOWN, 0 if begun else 1)
    assert "was not asked" in (outcome.error or "")


@pytest.mark.parametrize("handler", [never, answering(NOT_DONE)], ids=["silent", "no"])
async def test_where_there_is_no_time_to_ask_twice_nothing_is_repeated(performer: Performer, handler: Handler):
    async with serve(lost) as server, serve(handler) as ledger:
        outcome = await call(performer, tool(server, Effect.QUERYABLE, status=status_of(ledger.url)), deadline_s=0.4)
    assert (outcome.status, len(server.requests), len(ledger.requests)) == (ToolStatus.UNKNOWN, 1, 1)


async def test_without_a_status_nobody_can_say(performer: Performer):
    async with serve(lost) as server:
        outcome = await call(performer, tool(server, Effect.QUERYABLE))
    assert (outcome.status, len(server.requests)) == (ToolStatus.UNKNOWN, 1)


async def test_a_status_address_that_is_down_leaves_it_unknown(performer: Performer):
    async with serve(lost) as server:
        outcome = await call(performer, tool(server, Effect.QUERYABLE, status=status_of(f"http://127.0.0.1:{free_port()}")))
    assert (outcome.status, len(server.requests)) == (ToolStatus.UNKNOWN, 1)
    assert "closed the connection" in (outcome.error or "")
    assert "status address could not be reached" in (outcome.error or "")


async def test_cancelling_aborts_the_question(performer: Performer):
    async with serve(lost) as server, serve(never) as ledger:
        task = asyncio.create_task(call(performer, tool(server, Effect.QUERYABLE, status=status_of(ledger.url))))
        await asyncio.wait_for(ledger.arrived.wait(), 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(ledger.gone.wait(), 20)
        assert (len(server.requests), len(ledger.requests)) == (1, 1)
