"""What every fault of a model vendor becomes, over real sockets; each test asserts that the server really got the request."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from engine.errors import Malformed, ProviderDown, RateLimited, Rejected, ReplyLost, TimedOut, TurnlineError
from tests.support.http_servers import Request, answering, chunked, never, reset, response
from tests.support.openai_stream import KEY, PROMPT, TEXT, chunk, error, event, fail, piece, streaming
from tests.support.tool_calls import MakeOutside

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
async def test_failing_statuses(
    outside: MakeOutside, status: int, headers: dict[str, str], kind: type[TurnlineError], wait: float | None, body: Any
):
    caught = await fail(outside, answering(response(body, status, **headers)))
    assert type(caught) is kind
    assert not caught.maybe_done
    assert getattr(caught, "retry_after_s", None) == wait
    if isinstance(body, dict) and status != 302:
        assert "It is so." in str(caught)


async def test_errors_quote_neither_keys_nor_prompts(outside: MakeOutside):
    body = error(
        f"Incorrect API key provided: {KEY}, or sk-proj-99999999999, in 'Bearer abcdefghijk': cannot read {PROMPT!r} " + "x" * 5000,
        code="invalid_api_key",
    )
    caught = await fail(outside, answering(response(body, 401, x_secret="canary")))
    text = str(caught)
    assert text.startswith("The model provider openai answered 401: Incorrect API key provided")
    for hidden in (KEY, "sk-proj-9", "abcdefghijk", "four four", "canary"):
        assert hidden not in text
    assert "(invalid_api_key)" in text
    assert len(text) < 500


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ({"code": "rate_limit_exceeded"}, RateLimited),
        ({"code": 429}, RateLimited),
        ({"type": "server_error"}, ProviderDown),
        ({"type": "overloaded_error"}, ProviderDown),
        ({"type": "invalid_request_error"}, Rejected),
    ],
)
async def test_an_error_in_the_middle_of_a_stream(outside: MakeOutside, said: dict[str, Any], kind: type[TurnlineError]):
    for handler in (streaming(chunk(content="a"), error(**said)), answering(response(error(**said)))):
        caught = await fail(outside, handler)
        assert type(caught) is kind
        assert caught.maybe_done


async def test_an_error_event(outside: MakeOutside):
    handler = answering(b"".join(chunked([event(chunk(content="a")), b'event: error\ndata: {"message": "overloaded"}\n\n'])))
    assert isinstance(await fail(outside, handler), ProviderDown)


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
async def test_what_is_not_the_protocol(outside: MakeOutside, answer: bytes):
    assert isinstance(await fail(outside, answering(answer)), Malformed)


@pytest.mark.parametrize(
    "events",
    [[chunk(content="half")], [chunk(content="half"), b"[DONE]"], [], [b"[DONE]"], [chunk(tool_calls=[piece(0, '{"x"', "a", "1")])]],
    ids=range(5),
)
async def test_a_stream_without_an_end_is_a_lost_reply(outside: MakeOutside, events: list[Any]):
    assert isinstance(await fail(outside, streaming(*events)), ReplyLost)


@pytest.mark.parametrize("events", [[], TEXT[:2], TEXT[:4]], ids=["nothing", "half", "all but usage"])
@pytest.mark.parametrize("way", ["close", "reset"])
async def test_a_broken_stream_is_a_lost_reply(outside: MakeOutside, events: list[Any], way: str):
    async def handle(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.writelines(chunked([event(one) for one in events], end=False))
        await writer.drain()
        if way == "reset":
            reset(writer)
        writer.close()

    caught = await fail(outside, handle)
    assert isinstance(caught, ReplyLost)
    assert caught.maybe_done


async def test_a_reset_before_the_answer_is_a_lost_reply(outside: MakeOutside):
    async def handle(_request: Request, writer: asyncio.StreamWriter) -> None:
        reset(writer)

    assert isinstance(await fail(outside, handle), ReplyLost)


async def test_the_deadline_covers_headers_and_body(outside: MakeOutside):
    async def drip(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(chunked([])[0])
        while True:
            writer.write(b"1\r\n:\r\n")
            await writer.drain()
            await asyncio.sleep(0.02)

    for handler in (never, drip):
        caught = await fail(outside, handler, deadline_s=0.3)
        assert isinstance(caught, TimedOut)
        assert caught.maybe_done
