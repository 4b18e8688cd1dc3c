"""Tools over real sockets: what is sent, what comes back, and what an effect makes of every fault."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from uuid import uuid4

import pytest

from engine.enums import Effect, ToolStatus
from engine.events import ToolCall
from engine.turn.context import IntegrationSpec, ToolSpec
from integrations.executor import Performer
from tests.support.http_servers import Handler, Request, answering, free_port, never, reset, response, serve
from tests.support.tool_calls import OK, SECRET, MakeOutside, call, tool


@pytest.fixture
def performer(outside: MakeOutside) -> Performer:
    made = outside()
    return Performer(made.settings, made)


async def test_a_call_succeeds(performer: Performer):
    async with serve(answering(OK)) as server:
        what = tool(
            server,
            headers={"Accept": "text/x", "X-A": "1"},
            secret_headers={"Authorization": "Bearer {{key}}"},
            secrets={"key": SECRET + "\n"},
            query={"full": True},
            path="/orders?v=2%20b",
        )
        outcome = await call(performer, what)

    assert (outcome.status, outcome.result, outcome.requests) == (ToolStatus.SUCCEEDED, {"paid": True}, 1)
    assert outcome.integration_id == what.integrations[0].id
    assert outcome.latency_ms >= 0
    sent = server.requests[0]
    assert (sent.method, sent.json) == ("POST", {"order": 41})
    assert parse_qsl(urlsplit(sent.target).query) == [("v", "2 b"), ("full", "true")]
    expected = {
        "idempotency-key": "key-1",
        "authorization": f"Bearer {SECRET}",
        "accept": "text/x",
        "x-a": "1",
        "content-type": "application/json",
        "accept-encoding": "identity",
    }
    assert {name: sent.headers[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("method", "arguments", "target", "body"),
    [
        (
            "GET",
            {"order": "a b/c?d#e&f=ü", "tags": ["x", "y", None], "deep": {"n": 1}, "none": None, "yes": True, "n": 1.5},
            "/orders/a%20b%2Fc%3Fd%23e&f=%C3%BC?tags=x&tags=y&deep=%7B%22n%22%3A1%7D&yes=true&n=1.5",
            None,
        ),
        ("DELETE", {"order": 7}, "/orders/7", None),
        ("PUT", {"order": "ü", "note": "é"}, "/orders/%C3%BC", {"note": "é"}),
        ("PATCH", {"order": "%2e%2e"}, "/orders/%252e%252e", {}),
        ("POST", {"order": "..."}, "/orders/...", {}),
        ("POST", {"order": "@evil.example"}, "/orders/@evil.example", {}),
    ],
)
async def test_where_arguments_go(performer: Performer, method: str, arguments: Any, target: str, body: Any):
    async with serve(answering(OK)) as server:
        outcome = await call(performer, tool(server, path="/orders/{order}", method=method), arguments)
    assert outcome.status is ToolStatus.SUCCEEDED, outcome.error
    sent = server.requests[0]
    assert sent.method == method
    if method == "GET":
        assert sent.target.split("?")[0] == target.split("?")[0]
        assert parse_qsl(urlsplit(sent.target).query) == parse_qsl(urlsplit(target).query)
    else:
        assert sent.target == target
    assert (json.loads(sent.body) if sent.body else None) == body


@pytest.mark.parametrize("order", ["..", ".", "../admin", "a/../b", "a\\..\\b", "", [1], {}, None])
async def test_an_argument_cannot_leave_its_place_in_the_path(performer: Performer, order: Any):
    async with serve(answering(OK)) as server:
        outcome = await call(performer, tool(server, path="/orders/{order}/delete", parameters={"type": "object"}), {"order": order})
        assert outcome.status is ToolStatus.FAILED
        assert outcome.requests == 0
        assert server.connections == 0


@pytest.mark.parametrize("path", ["/v{order}.{order}", "/x/.{order}"])
async def test_two_harmless_pieces_do_not_make_a_way_up(performer: Performer, path: str):
    async with serve(answering(OK)) as server:
        outcome = await call(performer, tool(server, path=path, parameters={"type": "object"}), {"order": "."})
        assert outcome.status is ToolStatus.FAILED
        assert server.connections == 0


async def test_mappings_and_schemas(performer: Performer):
    async with serve(answering(response({"data": {"orders": [{"id": 1}, {"id": 2}]}}))) as server:
        what = tool(
            server,
            parameter_mapping={"order_id": "order", "kind": "`full`"},
            response_mapping="data.orders[].id",
            return_schema={"type": "array", "items": {"type": "integer"}},
        )
        outcome = await call(performer, what)
    assert server.requests[0].json == {"order_id": 41, "kind": "full"}
    assert outcome.result == [1, 2]


@pytest.mark.parametrize(
    ("settings", "arguments", "why", "requests"),
    [
        ({}, {}, '"order" is a required property', 0),
        ({}, {"order": None}, "order: null is not of types", 0),
        ({"parameter_mapping": "order"}, {"order": 1}, "must make an object", 0),
        ({"parameter_mapping": "nope("}, {"order": 1}, "not set up correctly", 0),
        ({"secret_headers": {"A": "gone"}}, {"order": 1}, "'gone' is not given", 0),
        ({"nonsense": 1}, {"order": 1}, "unknown field", 0),
        ({"method": "GET"}, {"order": "x" * 20_000}, "too long", 0),
        ({"return_schema": {"type": "array"}}, {"order": 1}, "It was carried out, but the result is not what the tool promises", 1),
        ({"response_mapping": "nope("}, {"order": 1}, "It was carried out, but the tool is not set up correctly", 1),
        ({"response_mapping": "{a:@,b:@}|" * 40 + "@"}, {"order": 1}, "cannot be used", 1),
    ],
)
async def test_failures_that_the_model_is_told(performer: Performer, settings: Any, arguments: Any, why: str, requests: int):
    async with serve(answering(OK)) as server:
        outcome = await call(performer, tool(server, **settings), arguments)
    assert outcome.status is ToolStatus.FAILED
    assert why in (outcome.error or "")
    assert outcome.requests == requests == len(server.requests)


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (response(b"", 204), None),
        (response("plain", content_type="text/plain; charset=utf-8"), {"text": "plain"}),
        (response("<b>hi</b>", content_type="text/html"), {"text": "<b>hi</b>"}),
        (response(b"\xff\x00", content_type="text/plain"), {"text": "\ufffd\ufffd"}),
        (
            response('{"a": "\\u0000\\ud83d", "n": 9007199254740993}', content_type="application/problem+json"),
            {"a": "\ufffd\ufffd", "n": "9007199254740993"},
        ),
        (response("[1]", content_type=""), [1]),
        (response({"a": 1}, 201), {"a": 1}),
    ],
)
async def test_answers(performer: Performer, answer: bytes, result: Any):
    async with serve(answering(answer)) as server:
        outcome = await call(performer, tool(server))
    assert (outcome.status, outcome.result) == (ToolStatus.SUCCEEDED, result)


@pytest.mark.parametrize(
    "answer",
    [
        response('{"a": 1'),
        response("<html>"),
        response('{"a": NaN}'),
        response("[" * 5000 + "]" * 5000),
        response("[1e400]"),
        response(b"x" * 300_000, content_type="text/plain"),
        response(OK, content_encoding="gzip"),
    ],
    ids=range(7),
)
async def test_an_answer_that_cannot_be_used_was_carried_out(performer: Performer, answer: bytes):
    async with serve(answering(answer)) as server:
        outcome = await call(performer, tool(server, Effect.IDEMPOTENT))
    assert outcome.status is ToolStatus.FAILED
    assert "It was carried out, but the answer cannot be used" in (outcome.error or "")
    assert len(server.requests) == outcome.requests == 1


async def test_secrets_are_cut_out_of_what_comes_back(performer: Performer):
    async def echo(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(response({"headers": request.headers, request.headers["x-key"]: 1}, 200 if request.json["order"] else 400))

    async with serve(echo) as server:
        what = tool(server, secret_headers={"X-Key": "key"}, secrets={"key": SECRET})
        good = await call(performer, what, {"order": 1})
        bad = await call(performer, what, {"order": 0})
    assert good.result["headers"]["x-key"] == "[…]"
    assert good.result["[…]"] == 1
    assert "[…]" in (bad.error or "")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422])
async def test_a_refusal_is_an_answer_for_the_model(performer: Performer, status: int):
    async with serve(answering(response({"error": "No order 41." + "x" * 5000}, status))) as server:
        outcome = await call(performer, tool(server, Effect.IDEMPOTENT))
    assert outcome.status is ToolStatus.FAILED
    assert (outcome.error or "").startswith(f'The tool answered {status}: {{"error": "No order 41.')
    assert len(outcome.error or "") < 1_100
    assert len(server.requests) == outcome.requests == 1


def breaking(times: int, way: Callable[[asyncio.StreamWriter], None]) -> Handler:
    """Break the first `times` requests in one way, then answer well."""
    left = times

    async def handle(_request: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal left
        if left:
            left -= 1
            way(writer)
        else:
            writer.write(OK)

    return handle


def server_error(writer: asyncio.StreamWriter) -> None:
    writer.write(response("{}", 500))


def rate_limit(writer: asyncio.StreamWriter) -> None:
    writer.write(response("{}", 429, retry_after="0.05"))


@pytest.mark.parametrize("way", [reset, server_error, rate_limit])
@pytest.mark.parametrize("effect", [Effect.PURE, Effect.IDEMPOTENT])
async def test_what_may_be_repeated_is_tried_three_times_with_one_key(performer: Performer, effect: Effect, way: Any):
    async with serve(breaking(2, way)) as server:
        outcome = await call(performer, tool(server, effect))
    assert (outcome.status, outcome.requests) == (ToolStatus.SUCCEEDED, 3)
    assert [request.headers["idempotency-key"] for request in server.requests] == ["key-1"] * 3


@pytest.mark.parametrize(
    ("way", "effect", "status", "requests"),
    [
        (reset, Effect.PURE, ToolStatus.FAILED, 3),
        (reset, Effect.IDEMPOTENT, ToolStatus.UNKNOWN, 3),
        (reset, Effect.QUERYABLE, ToolStatus.UNKNOWN, 1),
        (reset, Effect.UNSAFE, ToolStatus.UNKNOWN, 1),
        (server_error, Effect.PURE, ToolStatus.FAILED, 3),
        (server_error, Effect.IDEMPOTENT, ToolStatus.UNKNOWN, 3),
        (server_error, Effect.UNSAFE, ToolStatus.UNKNOWN, 1),
        (rate_limit, Effect.IDEMPOTENT, ToolStatus.FAILED, 3),
        (rate_limit, Effect.UNSAFE, ToolStatus.FAILED, 3),
    ],
)
async def test_what_is_known_in_the_end(performer: Performer, way: Any, effect: Effect, status: ToolStatus, requests: int):
    async with serve(breaking(99, way)) as server:
        outcome = await call(performer, tool(server, effect))
    assert outcome.status is status
    assert outcome.requests == len(server.requests) == requests
    assert ("may or may not have happened" in (outcome.error or "")) is (status is ToolStatus.UNKNOWN)


@pytest.mark.parametrize(
    ("effect", "status", "requests"),
    [(Effect.PURE, ToolStatus.SUCCEEDED, 1), (Effect.IDEMPOTENT, ToolStatus.SUCCEEDED, 1), (Effect.UNSAFE, ToolStatus.UNKNOWN, 0)],
)
async def test_a_call_that_a_former_attempt_had_begun(performer: Performer, effect: Effect, status: ToolStatus, requests: int):
    async with serve(answering(OK)) as server:
        outcome = await call(performer, tool(server, effect), begun=True)
    assert outcome.status is status
    assert outcome.requests == len(server.requests) == requests


async def test_a_lost_reply_is_not_forgotten_when_the_next_try_is_refused(performer: Performer):
    first = True

    async def handle(_request: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal first
        if first:
            first = False
            reset(writer)
        else:
            writer.write(response("{}", 429, retry_after="60"))

    async with serve(handle) as server:
        outcome = await call(performer, tool(server, Effect.IDEMPOTENT))
    assert (outcome.status, len(server.requests)) == (ToolStatus.UNKNOWN, 2)


def refuse(status: int) -> Callable[[asyncio.StreamWriter], None]:
    return lambda writer: writer.write(response({"error": "No."}, status))


@pytest.mark.parametrize("status", [400, 404, 409])
@pytest.mark.parametrize("begun", [False, True])
async def test_a_refusal_after_a_lost_reply_proves_nothing(performer: Performer, status: int, begun: bool):
    """The first try may have done it: a second cancellation finds no order, a call still under way is in conflict."""
    ways = [refuse(status)] if begun else [reset, refuse(status)]

    async def handle(_request: Request, writer: asyncio.StreamWriter) -> None:
        ways.pop(0)(writer)

    async with serve(handle) as server:
        outcome = await call(performer, tool(server, Effect.IDEMPOTENT), begun=begun)
    assert outcome.status is ToolStatus.UNKNOWN
    assert f"The tool answered {status}" in (outcome.error or "")


async def test_a_begun_call_that_reaches_nobody_now_is_unknown(performer: Performer):
    nowhere = f"http://127.0.0.1:{free_port()}"
    for effect, status in (
        (Effect.PURE, ToolStatus.FAILED),
        (Effect.IDEMPOTENT, ToolStatus.UNKNOWN),
        (Effect.QUERYABLE, ToolStatus.UNKNOWN),
    ):
        assert (await call(performer, tool(nowhere, effect), begun=True)).status is status
        unmapped = ToolSpec(uuid4(), "x", "", {}, effect=effect)
        assert (await call(performer, unmapped, begun=True)).status is status
    assert (await performer.use_tool(None, ToolCall("c", "gone", {}), "k", 5, begun=True)).status is ToolStatus.UNKNOWN
    garbled = await performer.use_tool(None, ToolCall("c", "gone", None, "{nope"), "k", 5, begun=True)
    assert garbled.status is ToolStatus.FAILED, "what was no JSON was never sent"


@pytest.mark.parametrize("retry_after", ["6", "86400"])
async def test_a_long_wait_is_not_waited_for(performer: Performer, retry_after: str):
    async with serve(answering(response("{}", 429, retry_after=retry_after))) as server:
        outcome = await call(performer, tool(server, Effect.PURE), deadline_s=60)
    assert (outcome.status, len(server.requests)) == (ToolStatus.FAILED, 1)


async def test_a_refused_connection_is_tried_again_for_every_effect_and_counts_as_no_request(performer: Performer):
    for effect in Effect:
        outcome = await call(performer, tool(f"http://127.0.0.1:{free_port()}", effect))
        assert (outcome.status, outcome.requests) == (ToolStatus.FAILED, 0)


async def test_a_server_that_comes_back_is_reached(performer: Performer):
    port = free_port()
    task = asyncio.create_task(call(performer, tool(f"http://127.0.0.1:{port}")))
    await asyncio.sleep(0.05)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", port):
        assert (await task).status is ToolStatus.SUCCEEDED


@pytest.mark.parametrize(("effect", "status"), [(Effect.UNSAFE, ToolStatus.UNKNOWN), (Effect.PURE, ToolStatus.FAILED)])
async def test_the_deadline_covers_all_tries(performer: Performer, effect: Effect, status: ToolStatus):
    async with serve(never) as server:
        outcome = await call(performer, tool(server, effect), deadline_s=0.3)
        assert outcome.status is status
        assert outcome.requests == len(server.requests) == 1


async def test_the_configured_timeout_bounds_one_try(performer: Performer):
    async with serve(never) as server:
        outcome = await call(performer, tool(server, timeout_s=0.2), deadline_s=60)
        assert outcome.status is ToolStatus.UNKNOWN
        assert len(server.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307])
async def test_redirects_are_not_followed(performer: Performer, status: int):
    async with serve(answering(OK)) as target, serve(answering(response("", status, location=target.url))) as server:
        outcome = await call(performer, tool(server, Effect.UNSAFE))
        assert outcome.status is (ToolStatus.FAILED if status == 307 else ToolStatus.UNKNOWN)
        assert len(server.requests) == 1
        assert target.connections == 0


async def test_a_forbidden_address_is_never_connected_to(outside: MakeOutside):
    made = outside(allowed_networks="")
    async with serve(answering(OK)) as server:
        outcome = await call(Performer(made.settings, made), tool(server, Effect.IDEMPOTENT))
        assert outcome.status is ToolStatus.FAILED
        assert "loopback" in (outcome.error or "")
        assert outcome.requests == server.connections == 0


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".example", "xn--"])
async def test_a_host_that_is_no_name_is_an_outcome(performer: Performer, host: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("integrations.tools.http.request.check_configuration", lambda _: None)  # were it not refused before it is sent
    for effect in (Effect.PURE, Effect.UNSAFE):
        outcome = await call(performer, tool(f"http://{host}", effect))
        assert (outcome.status, outcome.requests) == (ToolStatus.FAILED, 0)
        assert "its address is not a valid address" in (outcome.error or "")


async def test_calls_that_cannot_be_made(performer: Performer):
    unknown = await performer.use_tool(None, ToolCall("c", "nope", {}), "k", 5, tool_names=("a", "b"))
    assert (unknown.status, unknown.error, unknown.requests) == (ToolStatus.FAILED, "There is no tool 'nope'; there are: a, b.", 0)
    assert "has none" in ((await performer.use_tool(None, ToolCall("c", "nope", {}), "k", 5)).error or "")
    what = tool("http://127.0.0.1:1")
    garbled = await performer.use_tool(what, ToolCall("c", what.name, None, "{nope"), "k", 5)
    assert (garbled.status, garbled.requests) == (ToolStatus.FAILED, 0)
    assert "not a JSON object" in (garbled.error or "")
    other = IntegrationSpec(uuid4(), "carrier_pigeon", {})
    for integrations in ((), (other,)):
        lost = await performer.use_tool(ToolSpec(uuid4(), "x", "", {}, integrations=integrations), ToolCall("c", "x", {}), "k", 5)
        assert (lost.status, lost.requests) == (ToolStatus.FAILED, 0)


async def test_cancelling_a_tool_call_aborts_its_request(performer: Performer):
    async with serve(never) as server:
        task = asyncio.create_task(call(performer, tool(server, Effect.IDEMPOTENT)))
        await asyncio.wait_for(server.arrived.wait(), 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(server.gone.wait(), 20)
        assert len(server.requests) == 1
