"""Faults of a model provider, over real sockets. Each test asserts that the server really got the request."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from engine.errors import Malformed, ProviderDown, RateLimited, Rejected, ReplyLost, TimedOut, TurnlineError
from tests.support.http_clients import MakeHttpClients
from tests.support.http_servers import Request, answering, chunked, never, reset, response
from tests.support.openai_stream import KEY, PROMPT, TEXT, chunk, error, event, fail, piece, streaming

STATUSES: list[tuple[int, dict[str, str], type[TurnlineError], float | None]] = [
    (429, {"retry_after": "2"}, RateLimited, 2.0),
    (429, {}, RateLimited, None),
    (429, {"retry_after": "86400"}, RateLimited, 86400.0),
    (429, {"retry_after": "later"}, RateLimited, None),
    (500, {}, ProviderDown, None),
    (502, {}, ProviderDown, None),
    (503, {"retry_after": "1"}, ProviderDown, 1.0),
    (529, {}, ProviderDown, None),
    *((status, {}, Rejected, None) for status in (400, 401, 403, 404, 422, 302)),
]


@pytest.mark.parametrize(("status", "headers", "kind", "wait"), STATUSES)
@pytest.mark.parametrize("body", [error(), "<html>Bad gateway</html>", ""], ids=["json", "html", "empty"])
async def test_status_codes_become_errors(
    make_clients: MakeHttpClients, status: int, headers: dict[str, str], kind: type[TurnlineError], wait: float | None, body: Any
):
    caught = await fail(make_clients, answering(response(body, status, **headers)))
    assert type(caught) is kind
    assert not caught.maybe_done
    assert getattr(caught, "retry_after_s", None) == wait
    if isinstance(body, dict) and status != 302:
        assert "It is so." in str(caught)


async def test_errors_contain_neither_keys_nor_prompts(make_clients: MakeHttpClients):
    body = error(
        f"Incorrect API key provided: {KEY}, or sk-proj-99999999999, in 'Bearer abcdefghijk': cannot read {PROMPT!r} " + "x" * 5000,
        code="invalid_api_key",
    )
    caught = await fail(make_clients, answering(response(body, 401, x_secret="canary")))
    text = str(caught)
    assert text.startswith("The model provider openai answered 401: Incorrect API key provided")
    for hidden in (KEY, "sk-proj-9", "abcdefghijk", "four four", "canary"):
        assert hidden not in text
    assert "(invalid_api_key)" in text
    assert len(text) < 500


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"code": "rate_limit_exceeded"}, RateLimited),
        ({"code": 429}, RateLimited),
        ({"type": "server_error"}, ProviderDown),
        ({"type": "overloaded_error"}, ProviderDown),
        ({"type": "invalid_request_error"}, Rejected),
    ],
)
async def test_an_error_inside_a_stream(make_clients: MakeHttpClients, fields: dict[str, Any], kind: type[TurnlineError]):
    for handler in (streaming(chunk(content="a"), error(**fields)), answering(response(error(**fields)))):
        caught = await fail(make_clients, handler)
        assert type(caught) is kind
        assert caught.maybe_done


async def test_an_error_event(make_clients: MakeHttpClients):
    handler = answering(b"".join(chunked([event(chunk(content="a")), b'event: error\ndata: {"message": "overloaded"}\n\n'])))
    assert isinstance(await fail(make_clients, handler), ProviderDown)


@pytest.mark.parametrize(
    "answer",
    [
        response("<html>hello</html>", content_type="text/html"),
        response('{"choices": [{"mess'),
        response({}),
        response([]),
        response("null"),
        response({"choices": []}),
        response({"choices": None}),
        response({"choices": [3]}),
        response({"choices": [{}]}),
        response({"choices": [{"message": {"content": None}, "finish_reason": "stop"}]}),
        response({"choices": [{"message": {"content": 7}, "finish_reason": "stop"}]}),
        response({"choices": [{"message": {"content": "a", "tool_calls": "x"}}]}),
        response({"choices": [{"message": {"content": "a", "tool_calls": [1]}}]}),
        response({"choices": [{"message": {"tool_calls": [{"function": 1}]}}]}),
        response({"choices": [{"message": {"tool_calls": [{"function": {"name": "a", "arguments": 7}}]}}]}),
        response('{"choices": ' + "[" * 5000 + "]" * 5000 + "}"),
        response('{"choices": [{"message": {"content": "a"}, "x": NaN}]}'),
        response(b"\x1f\x8b...", content_encoding="gzip"),
        response(b" " * (8 * 1024 * 1024 + 1)),
        b"".join(chunked([event(b"{not json")])),
        b"".join(chunked([event([])])),
        b"".join(chunked([event({"choices": [{"delta": 5}]})])),
        b"".join(chunked([event(chunk("stop")), event(b"[DONE]")])),
        b"".join(chunked([b"data: " + b"x" * 1_100_000])),
    ],
    ids=range(24),
)
async def test_protocol_violations_are_malformed(make_clients: MakeHttpClients, answer: bytes):
    assert isinstance(await fail(make_clients, answering(answer)), Malformed)


@pytest.mark.parametrize(
    "events",
    [[chunk(content="half")], [chunk(content="half"), b"[DONE]"], [], [b"[DONE]"], [chunk(tool_calls=[piece(0, '{"x"', "a", "1")])]],
    ids=range(5),
)
async def test_a_stream_without_an_end_is_a_lost_reply(make_clients: MakeHttpClients, events: list[Any]):
    assert isinstance(await fail(make_clients, streaming(*events)), ReplyLost)


@pytest.mark.parametrize("events", [[], TEXT[:2], TEXT[:4]], ids=["nothing", "half", "all but usage"])
@pytest.mark.parametrize("ending", ["close", "reset"])
async def test_a_broken_stream_is_a_lost_reply(make_clients: MakeHttpClients, events: list[Any], ending: str):
    async def handle(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.writelines(chunked([event(one) for one in events], end=False))
        await writer.drain()
        if ending == "reset":
            reset(writer)
        writer.close()

    caught = await fail(make_clients, handle)
    assert isinstance(caught, ReplyLost)
    assert caught.maybe_done


async def test_a_reset_before_the_answer_is_a_lost_reply(make_clients: MakeHttpClients):
    async def handle(_request: Request, writer: asyncio.StreamWriter) -> None:
        reset(writer)

    assert isinstance(await fail(make_clients, handle), ReplyLost)


async def test_the_deadline_covers_headers_and_body(make_clients: MakeHttpClients):
    async def drip(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(chunked([])[0])
        while True:
            writer.write(b"1\r\n:\r\n")
            await writer.drain()
            await asyncio.sleep(0.02)

    for handler in (never, drip):
        caught = await fail(make_clients, handler, deadline_s=0.3)
        assert isinstance(caught, TimedOut)
        assert caught.maybe_done
