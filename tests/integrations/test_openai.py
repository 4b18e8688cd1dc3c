"""OpenAI's protocol over real sockets: the request sent and the reply assembled from a stream."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from engine.enums import FinishReason, Role
from engine.errors import Malformed, Rejected
from engine.events import Usage
from engine.model.request import PromptMessage, PromptToolCall
from engine.tools.spec import ToolSpec
from integrations.providers.registry import provider_for
from tests.support.http_clients import MakeHttpClients
from tests.support.http_servers import Handler, Request, answering, chunked, response, serve
from tests.support.openai_stream import KEY, LOOKUP, PROMPT, TEXT, USAGE, ask, chunk, event, fail, piece, request, streaming


async def test_streamed_text_becomes_a_reply(make_clients: MakeHttpClients):
    deltas: list[str] = []
    reply, server = await ask(make_clients, streaming(*TEXT, x_request_id="req_1"), deltas=deltas)

    assert (reply.text, reply.tool_calls, reply.finish_reason) == ("Yes, it is.", (), FinishReason.STOP)
    assert reply.usage == Usage(input_tokens=100, cached_input_tokens=64, output_tokens=20, reasoning_tokens=5)
    assert reply.model == "gpt-4o-mini-2024-07-18"
    assert reply.provider_request_id == "req_1"
    assert reply.ttft_ms is not None
    assert 0 <= reply.ttft_ms <= reply.latency_ms
    assert deltas == ["Yes, ", "it is."]
    sent = server.requests[0]
    assert (sent.method, sent.target) == ("POST", "/v1/chat/completions")
    assert sent.headers["authorization"] == f"Bearer {KEY}"
    assert sent.json == {
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": PROMPT}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 500,
        "temperature": 0.7,
    }


@pytest.mark.parametrize("model", ["o1", "o3-mini", "o4-mini-2025-04-16", "gpt-5", "gpt-5-nano", "openai/gpt-5"])
async def test_reasoning_models_get_max_completion_tokens(make_clients: MakeHttpClients, model: str):
    _, server = await ask(make_clients, streaming(*TEXT), request(model))
    sent = server.requests[0].json
    assert sent["max_completion_tokens"] == 500
    assert "temperature" not in sent
    assert "max_tokens" not in sent


async def test_history_and_tools_are_encoded(make_clients: MakeHttpClients):
    other = ToolSpec(uuid4(), "orders lookup", "Another of nearly that name.", {"type": "object"})
    twin = ToolSpec(uuid4(), "orders_lookup", "A third.", {"type": "object"})
    messages = [
        PromptMessage(Role.SYSTEM, "Be brief."),
        PromptMessage(Role.USER, "Is 41 paid? \ud83d"),
        PromptMessage(
            Role.ASSISTANT,
            "",
            (PromptToolCall("call_1", "orders.lookup", '{"order": 41}'), PromptToolCall("call_2", "gone tool!", '{"tru')),
        ),
        PromptMessage(Role.TOOL, '{"paid": true}', tool_call_id="call_1"),
        PromptMessage(Role.TOOL, "failed", tool_call_id="call_2"),
    ]
    handler = streaming(
        chunk(tool_calls=[piece(0, "{}", "orders_lookup_2", "a"), piece(1, "{}", "nonsense", "b")]), chunk("tool_calls"), b"[DONE]"
    )
    reply, server = await ask(make_clients, handler, request(messages=messages, tools=(LOOKUP, other, twin)))

    sent = server.requests[0].json
    assert [tool["function"]["name"] for tool in sent["tools"]] == ["orders_lookup", "orders_lookup_2", "orders_lookup_3"]
    assert sent["tools"][0] == {
        "type": "function",
        "function": {
            "name": "orders_lookup",
            "description": "Look an order up.\n\nAsk for the number first.",
            "parameters": LOOKUP.parameters,
        },
    }
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
    assert sent["messages"][1]["content"] == "Is 41 paid? ?"
    assert sent["messages"][2] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "orders_lookup", "arguments": '{"order": 41}'}},
            {"id": "call_2", "type": "function", "function": {"name": "gone_tool_", "arguments": "{}"}},
        ],
    }
    assert sent["messages"][3] == {"role": "tool", "content": '{"paid": true}', "tool_call_id": "call_1"}
    assert [call.tool_name for call in reply.tool_calls] == ["orders lookup", "nonsense"]


CALLS: dict[str, tuple[list[dict[str, Any]], list[tuple[str, Any]]]] = {
    "one, in fragments": (
        [piece(0, "", "orders_lookup", "a"), piece(0, '{"ord'), piece(0, 'er": 41}')],
        [("orders.lookup", {"order": 41})],
    ),
    "parallel": (
        [piece(0, "{}", "orders_lookup", "a"), piece(1, "", "mail", "b"), piece(1, '{"to":1}')],
        [("orders.lookup", {}), ("mail", {"to": 1})],
    ),
    "interleaved": (
        [piece(0, "", "a", "1"), piece(1, "", "b", "2"), piece(1, '{"y"'), piece(0, '{"x"'), piece(1, ":2}"), piece(0, ":1}")],
        [("a", {"x": 1}), ("b", {"y": 2})],
    ),
    "out of order": ([piece(1, '{"y":2}', "b", "2"), piece(0, '{"x":1}', "a", "1")], [("a", {"x": 1}), ("b", {"y": 2})]),
    "ids repeated by the provider": ([piece(0, "{}", "a", "same"), piece(1, "{}", "b", "same")], [("a", {}), ("b", {})]),
    "index always 0": ([piece(0, '{"x":1}', "a", "1"), piece(0, '{"y":2}', "b", "2")], [("a", {"x": 1}), ("b", {"y": 2})]),
    "no index": ([piece(None, '{"x"', "a", "1"), piece(None, ":1}"), piece(None, "{}", "b", "2")], [("a", {"x": 1}), ("b", {})]),
    "an id on every fragment": ([piece(0, '{"x"', "a", "1"), piece(0, ":1", None, "2"), piece(0, "}", None, "3")], [("a", {"x": 1})]),
    "opening repeated": ([piece(0, "", "a", "1"), piece(0, "", "a", "1"), piece(0, '{"x":1}')], [("a", {"x": 1})]),
    "whole text repeated": ([piece(0, '{"x"', "a", "1"), piece(0, ":1}"), piece(0, '{"x":1}')], [("a", {"x": 1})]),
    "no arguments": ([piece(0, None, "a", "1")], [("a", {})]),
    "arguments not JSON": ([piece(0, '{"x": nope', "a", "1")], [("a", None)]),
    "arguments not an object": ([piece(0, "[1]", "a", "1")], [("a", None)]),
    "arguments too deep": ([piece(0, '{"x":' * 70 + "1" + "}" * 70, "a", "1")], [("a", None)]),
    "arguments with NaN": ([piece(0, '{"x": NaN}', "a", "1")], [("a", None)]),
    "unstorable text": ([piece(0, '{"x": "\\u0000\\ud83d"}', "a\x00", "1")], [("a\ufffd", {"x": "\ufffd\ufffd"})]),
}


@pytest.mark.parametrize("name", CALLS)
async def test_tool_calls_are_assembled_from_fragments(make_clients: MakeHttpClients, name: str):
    pieces, expected = CALLS[name]
    handler = streaming(*(chunk(tool_calls=[one]) for one in pieces), chunk("tool_calls"), USAGE, b"[DONE]")
    reply, _ = await ask(make_clients, handler, request(tools=(LOOKUP,)))

    assert [(call.tool_name, call.arguments) for call in reply.tool_calls] == expected
    assert reply.finish_reason is FinishReason.TOOL_CALLS
    ids = [call.tool_call_id for call in reply.tool_calls]
    assert len(set(ids)) == len(ids)
    assert all(one.startswith("call_") and len(one) == 37 for one in ids)
    if expected[0][1] is None:
        assert reply.tool_calls[0].raw_arguments == pieces[0]["function"]["arguments"]


async def test_more_than_64_tool_calls_are_malformed(make_clients: MakeHttpClients):
    def many(count: int) -> Handler:
        return streaming(chunk(tool_calls=[piece(n, "{}", "a", str(n)) for n in range(count)]), chunk("tool_calls"), b"[DONE]")

    assert len((await ask(make_clients, many(64)))[0].tool_calls) == 64
    assert isinstance(await fail(make_clients, many(65)), Malformed)
    assert isinstance(await fail(make_clients, many(200)), Malformed)


@pytest.mark.parametrize(
    ("events", "text", "finish"),
    [
        ([chunk(content="cut"), chunk("length"), b"[DONE]"], "cut", FinishReason.LENGTH),
        ([chunk("length"), b"[DONE]"], "", FinishReason.LENGTH),
        ([chunk(content="I"), chunk("content_filter"), b"[DONE]"], "I", FinishReason.CONTENT_FILTER),
        ([chunk(content="a"), chunk("some_new_reason"), b"[DONE]"], "a", FinishReason.STOP),
        ([chunk(content="a"), chunk("tool_calls"), b"[DONE]"], "a", FinishReason.STOP),
        ([chunk(refusal="I cannot "), chunk(refusal="do that."), chunk("stop"), b"[DONE]"], "I cannot do that.", FinishReason.STOP),
        ([chunk(content="no DONE"), chunk("stop")], "no DONE", FinishReason.STOP),
        ([chunk(content="\ud83d"), chunk(content="\ude00 \x00"), chunk("stop"), b"[DONE]"], "\U0001f600 \ufffd", FinishReason.STOP),
        ([{"choices": [], "prompt_filter_results": []}, chunk(content="Azure"), chunk("stop"), b"[DONE]"], "Azure", FinishReason.STOP),
        (
            [
                chunk(content="a") | {"choices": [chunk(content="b")["choices"][0] | {"index": 1}, *chunk("stop", content="a")["choices"]]},
                b"[DONE]",
            ],
            "a",
            FinishReason.STOP,
        ),
    ],
)
async def test_finish_reasons(make_clients: MakeHttpClients, events: list[Any], text: str, finish: FinishReason):
    deltas: list[str] = []
    reply, _ = await ask(make_clients, streaming(*events), deltas=deltas)
    assert (reply.text, reply.finish_reason, reply.usage) == (text, finish, None)
    assert "".join(deltas) == text


BAD_USAGE: tuple[object, ...] = (
    None,
    {},
    [],
    "many",
    {"prompt_tokens": -1, "completion_tokens": 3},
    {"prompt_tokens": 7, "completion_tokens": -3},
    {"prompt_tokens": 7},
    {"prompt_tokens": 7.5, "completion_tokens": 3},
    {"prompt_tokens": True, "completion_tokens": 3},
    {"prompt_tokens": 10**12, "completion_tokens": 3},
    {"prompt_tokens": 10**30, "completion_tokens": 3},
    {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 8}},
    {"prompt_tokens": 7, "completion_tokens": 3, "completion_tokens_details": {"reasoning_tokens": 4}},
)


@pytest.mark.parametrize(
    ("reported", "usage"),
    [
        ({"prompt_tokens": 7, "completion_tokens": 3}, Usage(input_tokens=7, output_tokens=3)),
        (
            {
                "prompt_tokens": 7,
                "completion_tokens": 3,
                "prompt_tokens_details": None,
                "completion_tokens_details": {"reasoning_tokens": None},
            },
            Usage(input_tokens=7, output_tokens=3),
        ),
        (
            {"prompt_tokens": 291, "completion_tokens": 26, "total_tokens": 506, "completion_tokens_details": {"reasoning_tokens": 189}},
            Usage(input_tokens=291, output_tokens=215, reasoning_tokens=189),
        ),
        *((bad, None) for bad in BAD_USAGE),
    ],
)
async def test_usage(make_clients: MakeHttpClients, reported: Any, usage: Usage | None):
    reply, _ = await ask(make_clients, streaming(chunk(content="a"), chunk("stop"), {"choices": [], "usage": reported}, b"[DONE]"))
    assert reply.usage == usage


async def test_a_reply_that_is_not_streamed(make_clients: MakeHttpClients):
    message = {
        "role": "assistant",
        "content": "Looking.",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "orders_lookup", "arguments": '{"order":1}'}}],
    }
    body = {
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2},
    }
    deltas: list[str] = []
    reply, _ = await ask(make_clients, answering(response(body)), request(tools=(LOOKUP,)), deltas=deltas)
    assert (reply.text, reply.finish_reason, reply.usage) == ("Looking.", FinishReason.TOOL_CALLS, Usage(input_tokens=1, output_tokens=2))
    assert [(call.tool_name, call.arguments) for call in reply.tool_calls] == [("orders.lookup", {"order": 1})]
    assert deltas == ["Looking."]


async def test_a_stream_may_arrive_byte_by_byte(make_clients: MakeHttpClients):
    stream = b"".join(chunked([event(one) for one in TEXT]))

    async def handle(_request: Request, writer: asyncio.StreamWriter) -> None:
        for place in range(len(stream)):
            writer.write(stream[place : place + 1])
            await writer.drain()
            await asyncio.sleep(0)

    deltas: list[str] = []
    reply, _ = await ask(make_clients, handle, deltas=deltas)
    assert reply.text == "Yes, it is."
    assert deltas == ["Yes, ", "it is."]


async def test_connections_are_reused_after_a_stream(make_clients: MakeHttpClients):
    *pieces, end = chunked([event(one) for one in TEXT])

    async def handle(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.writelines(pieces)
        await writer.drain()
        await asyncio.sleep(0.01)  # the end of the body comes after [DONE] was read
        writer.write(end)

    async with serve(handle) as server:
        provider = provider_for("openai", make_clients(OPENAI_BASE_URL=server.url))
        for _ in range(4):
            await provider.complete(request(), deadline_s=20)
    assert server.connections == 1
    assert "authorization" not in server.requests[0].headers


async def test_a_connection_left_open_after_done_is_not_waited_for(make_clients: MakeHttpClients):
    async def handle(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.writelines(chunked([event(one) for one in TEXT], end=False))
        await asyncio.sleep(3600)

    reply, _ = await ask(make_clients, handle)
    assert reply.text == "Yes, it is."


async def test_three_hundred_streams_over_one_client(make_clients: MakeHttpClients):
    all_arrived, arrived = asyncio.Event(), 0

    async def handle(_request: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal arrived
        arrived += 1
        if arrived == 300:
            all_arrived.set()
        await all_arrived.wait()
        writer.writelines(chunked([event(one) for one in TEXT]))

    async with serve(handle) as server:
        provider = provider_for("openai", make_clients(OPENAI_BASE_URL=server.url))
        replies = await asyncio.gather(*(provider.complete(request(), deadline_s=60) for _ in range(300)))
    assert {reply.text for reply in replies} == {"Yes, it is."}
    assert len(server.requests) == 300


def test_an_unknown_provider_is_rejected(make_clients: MakeHttpClients):
    with pytest.raises(Rejected, match="openai"):
        provider_for("nobody", make_clients())
