"""Streamed replies compared with complete ones."""

from __future__ import annotations

import pytest

WANTS_USAGE = {"stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize(
    "text",
    [
        "Hello there",
        "[[words 100]]",
        "[[say  Zwei  Wörter\n und 💡 ]]",
        "Is order 41 paid?",
        '[[call echo {"long": "abcdefghijklmnopqrstuvwxyz ä"}]][[call orders_lookup {"order": 2}]]',
        "[[token-ms 1]][[words 20]]",
    ],
)
@pytest.mark.parametrize("model", ["gpt-4o-mini", "gpt-5"])
async def test_a_stream_has_the_same_content_as_the_complete_reply(ask, orders, text, model):
    whole = (await ask(text, tools=[orders], model=model)).json()
    stream = await ask(text, tools=[orders], model=model, **WANTS_USAGE)
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert stream.events()[-1] == "[DONE]"
    chunks = stream.chunks()
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    choice = whole["choices"][0]
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]] == [None] * (len(chunks) - 2) + [choice["finish_reason"]]
    assert stream.content() == (choice["message"]["content"] or "")

    calls: list[dict[str, str]] = []
    for chunk in chunks[1:-2]:
        for part in chunk["choices"][0]["delta"].get("tool_calls", []):
            if part["index"] == len(calls):
                calls.append({"name": part["function"]["name"], "arguments": ""})
                assert part["id"]
                assert part["type"] == "function"
            calls[part["index"]]["arguments"] += part["function"]["arguments"]
    assert calls == [call["function"] for call in choice["message"].get("tool_calls", [])]


async def test_one_chunk_per_word_and_usage_only_on_request(ask):
    chunks = (await ask("[[words 12]]", stream=True)).chunks()
    assert len(chunks) == 1 + 12 + 1
    assert all("usage" not in chunk for chunk in chunks)
