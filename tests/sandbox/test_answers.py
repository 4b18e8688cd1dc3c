"""Answers of the fake model: text, tool calls, results and usage."""

from __future__ import annotations

import json
from typing import Any

import pytest


def message(received: Any) -> dict[str, Any]:
    assert received.status == 200, received.body
    found: dict[str, Any] = received.json()["choices"][0]["message"]
    return found


def calls(received: Any) -> list[tuple[str, Any]]:
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in message(received)["tool_calls"]]


def results(received: Any, *contents: str) -> list[dict[str, Any]]:
    """Return the messages that carry the model's calls and their results."""
    assistant = message(received)
    return [
        assistant,
        *({"role": "tool", "tool_call_id": c["id"], "content": t} for c, t in zip(assistant["tool_calls"], contents, strict=True)),
    ]


async def test_a_plain_text_is_echoed(ask):
    received = await ask("Hello there")
    assert message(received)["content"] == 'You said: "Hello there". That is message 1 from you.'
    assert received.json()["choices"][0]["finish_reason"] == "stop"
    assert received.headers["x-request-id"].startswith("req_")
    assert received.json()["id"].startswith("chatcmpl-")


async def test_a_tool_is_called_and_its_result_quoted(ask, call, orders):
    history = [{"role": "user", "content": "Is order 41 paid?"}]
    first = await ask(history, tools=[orders])
    assert calls(first) == [("orders_lookup", {"order": 41})]
    assert first.json()["choices"][0]["finish_reason"] == "tool_calls"

    result = (await call("orders_lookup", {"order": 41})).body.decode()
    second = await ask([*history, *results(first, result)], tools=[orders])
    assert message(second)["content"] == "According to orders_lookup: order is 41, paid is true, total is 129.90, currency is EUR."


@pytest.mark.parametrize(
    ("schema", "text", "arguments"),
    [
        ({"city": {"type": "string"}}, "How is the weather in Paris?", {"city": "Paris"}),
        ({"city": {"type": "string"}}, "Weather for 'new york' please", {"city": "new york"}),
        ({"unit": {"enum": ["celsius", "kelvin"]}}, "Tell me in Kelvin", {"unit": "kelvin"}),
        ({"order": {"type": "integer"}, "amount": {"type": "number"}}, "Refund 12.50 for order 7", {"order": 7, "amount": 12.5}),
        ({"city": {"type": "string"}}, "How is it there?", None),
        ({"order": {"type": "integer"}}, "Is it 12.5 or v2?", None),
    ],
)
async def test_a_tool_is_called_only_if_its_parameters_are_found(ask, schema, text, arguments):
    tool = {"type": "function", "function": {"name": "t", "parameters": {"type": "object", "properties": schema, "required": list(schema)}}}
    received = await ask(text, tools=[tool])
    assert message(received).get("tool_calls") is None if arguments is None else calls(received) == [("t", arguments)]


async def test_tool_choice_none_and_required(ask, orders):
    assert message(await ask("Is order 41 paid?", tools=[orders], tool_choice="none"))["content"].startswith("You said")
    assert calls(await ask("hello", tools=[orders], tool_choice="required")) == [("orders_lookup", {})]


async def test_markers_for_parallel_calls_further_steps_and_text(ask, orders):
    text = 'Do [[call orders_lookup {"order": 1}]][[call echo {"deep": [[1]]}]] [[then refund {"order": 1, "amount": 2}]] [[say All done.]]'
    history = [{"role": "user", "content": text}]
    first = await ask(history, tools=[orders])
    assert calls(first) == [("orders_lookup", {"order": 1}), ("echo", {"deep": [[1]]})]
    history += results(first, "{}", "{}")
    second = await ask(history, tools=[orders])
    assert calls(second) == [("refund", {"order": 1, "amount": 2})]
    history += results(second, "{}")
    assert message(await ask(history, tools=[orders]))["content"] == "All done."


async def test_call_ids_are_unique(ask, orders):
    ids = {c["id"] for _ in range(2) for c in message(await ask("[[calls 200 echo]]", tools=[orders]))["tool_calls"]}
    assert len(ids) == 400


async def test_loop_marker_calls_until_no_tool_is_offered(ask, orders):
    history = [{"role": "user", "content": '[[loop echo {"n": 1}]]'}]
    for _ in range(4):
        received = await ask(history, tools=[orders])
        assert calls(received) == [("echo", {"n": 1})]
        history += results(received, '{"n": 1}')
    assert message(await ask(history))["content"].startswith("According to echo: n is 1.")


async def test_markers_for_invalid_calls(ask, orders):
    same = message(await ask("[[same-id echo]]", tools=[orders]))["tool_calls"]
    assert len(same) == 2
    assert same[0]["id"] == same[1]["id"]
    assert message(await ask("[[unknown-tool]]"))["tool_calls"][0]["function"]["name"] == "no_such_tool"
    bad = message(await ask("[[bad-arguments orders_lookup]]", tools=[orders]))["tool_calls"][0]["function"]
    with pytest.raises(ValueError):
        json.loads(bad["arguments"])


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ('{"status": "failed", "error": "no such order"}', "echo failed: no such order."),
        ('{"status": "denied", "reason": "not today"}', "echo denied: not today."),
        ('{"status": "unknown"}', "echo is unknown: no reason given."),
        ('{"error": {"code": 5}}', 'echo failed: {"code": 5}.'),
        ('{"paid": true, "error": null}', "According to echo: paid is true, error is null."),
        ('{"status": "paid"}', "According to echo: status is paid."),
        ("plain words", "According to echo: plain words."),
        ("[1, 2]", "According to echo: [1, 2]."),
        ("{}", "According to echo: nothing."),
    ],
)
async def test_tool_results_are_described_in_words(ask, orders, result, words):
    history = [{"role": "user", "content": "[[call echo]]"}]
    history += results(await ask(history, tools=[orders]), result)
    assert message(await ask(history, tools=[orders]))["content"] == words


async def test_content_parts_and_token_limit(ask):
    parts = [{"role": "user", "content": [{"type": "text", "text": "[[say one "}, {"type": "text", "text": "two]]"}]}]
    assert message(await ask(parts))["content"] == "one two"
    received = await ask("[[words 50]]", max_completion_tokens=5)
    assert len(message(received)["content"]) == 20
    assert received.json()["choices"][0]["finish_reason"] == "length"


async def test_usage_counts_text_cache_and_reasoning(ask, orders):
    short, longer = (await ask("[[say ok]]")).json()["usage"], (await ask("[[say ok]]" + "x" * 400)).json()["usage"]
    assert longer["prompt_tokens"] - short["prompt_tokens"] == 100
    assert short["total_tokens"] == short["prompt_tokens"] + short["completion_tokens"]
    assert short["prompt_tokens_details"]["cached_tokens"] == 0
    history = [{"role": "user", "content": "Is order 41 paid?"}]
    history += results(await ask(history, tools=[orders]), '{"paid": true}')
    usage = (await ask(history, tools=[orders])).json()["usage"]
    assert 0 < usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 0
    reasoned = (await ask("hi", model="o4-mini")).json()["usage"]
    assert 0 < reasoned["completion_tokens_details"]["reasoning_tokens"] < reasoned["completion_tokens"]


async def test_equal_requests_get_equal_replies_except_for_ids(ask):
    first, second = [(await ask("Tell me [[words 30]]")).json() for _ in range(2)]
    for reply in (first, second):
        del reply["id"], reply["created"]
    assert first == second
