"""HTTP tools over real sockets: the request that is sent, the outcome of each answer, and calls that are never sent."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from uuid import uuid4

import pytest

from engine.enums import Effect, ToolStatus
from engine.events import ToolCall
from engine.tools.spec import IntegrationSpec, ToolSpec
from integrations.executor import Performer
from tests.support.http_clients import MakeHttpClients
from tests.support.http_servers import Request, answering, never, response, serve
from tests.support.http_tools import OK, SECRET, call_tool, make_tool


async def test_a_call_succeeds(performer: Performer):
    async with serve(answering(OK)) as server:
        tool_spec = make_tool(
            server,
            headers={"Accept": "text/x", "X-A": "1"},
            secret_headers={"Authorization": "Bearer {{key}}"},
            secrets={"key": SECRET + "\n"},
            query={"full": True},
            path="/orders?v=2%20b",
        )
        outcome = await call_tool(performer, tool_spec)

    assert (outcome.status, outcome.result, outcome.requests) == (ToolStatus.SUCCEEDED, {"paid": True}, 1)
    assert outcome.integration_id == tool_spec.integrations[0].id
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
async def test_arguments_are_sent_in_path_query_or_body(performer: Performer, method: str, arguments: Any, target: str, body: Any):
    async with serve(answering(OK)) as server:
        outcome = await call_tool(performer, make_tool(server, path="/orders/{order}", method=method), arguments)
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
async def test_an_argument_cannot_escape_its_path_segment(performer: Performer, order: Any):
    async with serve(answering(OK)) as server:
        outcome = await call_tool(
            performer, make_tool(server, path="/orders/{order}/delete", parameters={"type": "object"}), {"order": order}
        )
        assert outcome.status is ToolStatus.FAILED
        assert outcome.requests == 0
        assert server.connections == 0


@pytest.mark.parametrize("path", ["/v{order}.{order}", "/x/.{order}"])
async def test_arguments_cannot_combine_into_a_dot_segment(performer: Performer, path: str):
    async with serve(answering(OK)) as server:
        outcome = await call_tool(performer, make_tool(server, path=path, parameters={"type": "object"}), {"order": "."})
        assert outcome.status is ToolStatus.FAILED
        assert server.connections == 0


async def test_mappings_are_applied_to_arguments_and_result(performer: Performer):
    async with serve(answering(response({"data": {"orders": [{"id": 1}, {"id": 2}]}}))) as server:
        tool_spec = make_tool(
            server,
            parameter_mapping={"order_id": "order", "kind": "`full`"},
            response_mapping="data.orders[].id",
            return_schema={"type": "array", "items": {"type": "integer"}},
        )
        outcome = await call_tool(performer, tool_spec)
    assert server.requests[0].json == {"order_id": 41, "kind": "full"}
    assert outcome.result == [1, 2]


@pytest.mark.parametrize(
    ("settings", "arguments", "reason", "requests"),
    [
        ({}, {}, '"order" is a required property', 0),
        ({}, {"order": None}, "order: null is not of types", 0),
        ({"parameter_mapping": "order"}, {"order": 1}, "must return an object", 0),
        ({"parameter_mapping": "nope("}, {"order": 1}, "not set up correctly", 0),
        ({"secret_headers": {"A": "gone"}}, {"order": 1}, "'gone' is not given", 0),
        ({"nonsense": 1}, {"order": 1}, "unknown field", 0),
        ({"method": "GET"}, {"order": "x" * 20_000}, "too long", 0),
        ({"return_schema": {"type": "array"}}, {"order": 1}, "It was executed, but the result does not match", 1),
        ({"response_mapping": "nope("}, {"order": 1}, "It was executed, but the tool is not set up correctly", 1),
        ({"response_mapping": "{a:@,b:@}|" * 40 + "@"}, {"order": 1}, "cannot be used", 1),
    ],
)
async def test_failed_calls_give_the_model_a_reason(performer: Performer, settings: Any, arguments: Any, reason: str, requests: int):
    async with serve(answering(OK)) as server:
        outcome = await call_tool(performer, make_tool(server, **settings), arguments)
    assert outcome.status is ToolStatus.FAILED
    assert reason in (outcome.error or "")
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
async def test_successful_answers_become_results(performer: Performer, answer: bytes, result: Any):
    async with serve(answering(answer)) as server:
        outcome = await call_tool(performer, make_tool(server))
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
async def test_an_unusable_answer_means_that_the_call_was_executed(performer: Performer, answer: bytes):
    async with serve(answering(answer)) as server:
        outcome = await call_tool(performer, make_tool(server, Effect.IDEMPOTENT))
    assert outcome.status is ToolStatus.FAILED
    assert "It was executed, but the answer cannot be used" in (outcome.error or "")
    assert len(server.requests) == outcome.requests == 1


async def test_secrets_are_removed_from_answers(performer: Performer):
    async def echo(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(response({"headers": request.headers, request.headers["x-key"]: 1}, 200 if request.json["order"] else 400))

    async with serve(echo) as server:
        tool_spec = make_tool(server, secret_headers={"X-Key": "key"}, secrets={"key": SECRET})
        good = await call_tool(performer, tool_spec, {"order": 1})
        bad = await call_tool(performer, tool_spec, {"order": 0})
    assert good.result["headers"]["x-key"] == "[…]"
    assert good.result["[…]"] == 1
    assert "[…]" in (bad.error or "")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422])
async def test_a_client_error_is_quoted_to_the_model(performer: Performer, status: int):
    async with serve(answering(response({"error": "No order 41." + "x" * 5000}, status))) as server:
        outcome = await call_tool(performer, make_tool(server, Effect.IDEMPOTENT))
    assert outcome.status is ToolStatus.FAILED
    assert (outcome.error or "").startswith(f'The tool answered {status}: {{"error": "No order 41.')
    assert len(outcome.error or "") < 1_100
    assert len(server.requests) == outcome.requests == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307])
async def test_redirects_are_not_followed(performer: Performer, status: int):
    async with serve(answering(OK)) as target, serve(answering(response("", status, location=target.url))) as server:
        outcome = await call_tool(performer, make_tool(server, Effect.UNSAFE))
        assert outcome.status is (ToolStatus.FAILED if status == 307 else ToolStatus.UNKNOWN)
        assert len(server.requests) == 1
        assert target.connections == 0


async def test_forbidden_addresses_are_never_connected_to(make_clients: MakeHttpClients):
    clients = make_clients(allowed_networks="")
    async with serve(answering(OK)) as server:
        outcome = await call_tool(Performer(clients.settings, clients), make_tool(server, Effect.IDEMPOTENT))
        assert outcome.status is ToolStatus.FAILED
        assert "loopback" in (outcome.error or "")
        assert outcome.requests == server.connections == 0


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".example", "xn--"])
async def test_an_invalid_host_name_fails_the_call(performer: Performer, host: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("integrations.tools.http.request.check_configuration", lambda _: None)  # so that the URL itself is tested
    for effect in (Effect.PURE, Effect.UNSAFE):
        outcome = await call_tool(performer, make_tool(f"http://{host}", effect))
        assert (outcome.status, outcome.requests) == (ToolStatus.FAILED, 0)
        assert "its address is not a valid address" in (outcome.error or "")


async def test_calls_that_cannot_be_sent_fail(performer: Performer):
    unknown = await performer.use_tool(None, ToolCall("c", "nope", {}), "k", 5, tool_names=("a", "b"))
    assert (unknown.status, unknown.error, unknown.requests) == (ToolStatus.FAILED, "There is no tool 'nope'; there are: a, b.", 0)
    assert "has none" in ((await performer.use_tool(None, ToolCall("c", "nope", {}), "k", 5)).error or "")
    tool_spec = make_tool("http://127.0.0.1:1")
    garbled = await performer.use_tool(tool_spec, ToolCall("c", tool_spec.name, None, "{nope"), "k", 5)
    assert (garbled.status, garbled.requests) == (ToolStatus.FAILED, 0)
    assert "not a JSON object" in (garbled.error or "")
    other = IntegrationSpec(uuid4(), "carrier_pigeon", {})
    for integrations in ((), (other,)):
        lost = await performer.use_tool(ToolSpec(uuid4(), "x", "", {}, integrations=integrations), ToolCall("c", "x", {}), "k", 5)
        assert (lost.status, lost.requests) == (ToolStatus.FAILED, 0)


async def test_cancelling_a_tool_call_aborts_its_request(performer: Performer):
    async with serve(never) as server:
        task = asyncio.create_task(call_tool(performer, make_tool(server, Effect.IDEMPOTENT)))
        await asyncio.wait_for(server.arrived.wait(), 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(server.gone.wait(), 20)
        assert len(server.requests) == 1
