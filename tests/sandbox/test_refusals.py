"""Requests that the sandbox refuses as OpenAI does."""

from __future__ import annotations

import json
from typing import Any

import pytest

USER = {"role": "user", "content": "hello"}


def calling(*ids: str) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": i, "type": "function", "function": {"name": "echo", "arguments": "{}"}} for i in ids],
    }


def result(call_id: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": "{}"}


@pytest.mark.parametrize(
    "messages",
    [
        [USER, calling("a"), result("a")],
        [USER, calling("a", "b"), result("b"), result("a"), USER],
        [{"role": "system", "content": "s"}, {"role": "developer", "content": "d"}, USER, {"role": "assistant", "content": "x"}, USER],
        [{"role": "system", "content": "only instructions"}],
    ],
)
async def test_a_valid_history_is_answered(ask, messages):
    assert (await ask(messages)).status == 200


@pytest.mark.parametrize(
    "messages",
    [
        [],
        {},
        ["hello"],
        [{"role": "robot", "content": "x"}],
        [{"content": "x"}],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": []}],
        [{"role": "assistant", "content": None}],
        [USER, calling("a")],
        [USER, calling("a"), USER, result("a")],
        [USER, calling("a", "b"), result("a")],
        [USER, calling("a"), result("a"), result("a")],
        [USER, result("a")],
        [USER, calling("a"), result("b")],
        [USER, calling("a", "a"), result("a")],
        [USER, calling("a"), result("a"), calling("a"), result("a")],
        [USER, {"role": "assistant", "content": "x", "tool_calls": []}],
        [
            USER,
            {"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "e", "arguments": {}}}]},
            result("a"),
        ],
        [
            USER,
            {"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "e.f", "arguments": ""}}]},
            result("a"),
        ],
    ],
)
async def test_an_invalid_history_is_refused_in_openai_format(ask, sandbox, messages):
    received = await ask(messages)
    assert received.status == 400, received.body
    error = received.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert len(sandbox.counts.bad_requests) == 1
    assert (sandbox.counts.refused, sandbox.counts.completed) == (1, 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"model": ""},
        {"temperature": 2.1},
        {"temperature": -0.1},
        {"temperature": "1"},
        {"temperature": 0.5, "model": "gpt-5-mini"},
        {"max_tokens": 5, "model": "o4-mini"},
        {"max_tokens": 0},
        {"stream": "yes"},
        {"stream_options": {"include_usage": True}},
        {"tools": []},
        {"tool_choice": "auto"},
        {"tools": [{"type": "function", "function": {"name": "a.b"}}]},
        {"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]},
        {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}]},
        {"tools": [{"type": "function", "function": {"name": "a"}}], "tool_choice": {"type": "function", "function": {"name": "b"}}},
    ],
)
async def test_invalid_parameters_are_refused(ask, fields):
    assert (await ask("hello", **fields)).status == 400


@pytest.mark.parametrize("text", ["[[call", "[[call ]]", "[[call a {]]", "[[words many]]", "[[fault no-such]]", "[[fault 500 twice]]"])
async def test_an_invalid_marker_is_refused(ask, text):
    received = await ask(text)
    assert (received.status, received.json()["error"]["code"]) == (400, "sandbox_marker")


async def test_other_double_brackets_are_plain_text(ask):
    assert '"see [[wiki]] and a[[0]]"' in (await ask("see [[wiki]] and a[[0]]")).json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "seed": NaN}',
        b"\xff",
        json.dumps({"model": "m", "messages": [{"role": "user", "content": "\ud800"}]}).encode(),
        b"[" * 100_000,
    ],
)
async def test_a_body_that_is_not_strict_json_is_refused(fetch, body):
    received = await fetch("POST", "/v1/chat/completions", body, {"authorization": "Bearer key"})
    assert (received.status, received.json()["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer "}, {"authorization": "Basic eDp5"}])
async def test_requests_without_a_key_get_401(fetch, headers):
    for method, target in (("POST", "/v1/chat/completions"), ("GET", "/v1/models")):
        received = await fetch(method, target, b"{}", headers)
        assert (received.status, received.json()["error"]["code"]) == (401, "invalid_api_key")


async def test_unknown_paths_and_methods(fetch):
    assert (await fetch("GET", "/v1/nothing")).status == 404
    assert (await fetch("GET", "/v1/chat/completions")).status == 405
    assert (await fetch("DELETE", "/tools/echo")).status == 405
    models = (await fetch("GET", "/v1/models", b"", {"authorization": "Bearer key"})).json()
    assert {"id", "object", "created", "owned_by"} == set(models["data"][0])
