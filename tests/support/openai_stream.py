"""Handmade OpenAI streams, and calls of a server that sends them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any
from uuid import uuid4

import pytest

from engine.enums import Role
from engine.errors import TurnlineError
from engine.events import ModelReply
from engine.model.request import ModelRequest, PromptMessage
from engine.tools.spec import ToolSpec
from integrations.providers.registry import provider_for
from tests.support.http_clients import MakeHttpClients
from tests.support.http_servers import Handler, Server, answering, chunked, serve

KEY = "sk-test-0123456789abcdef"
PROMPT = "My card number is four four four four, is order 41 paid?"
LOOKUP = ToolSpec(
    uuid4(),
    "orders.lookup",
    "Look an order up.",
    {"type": "object", "properties": {"order": {"type": "integer"}}},
    usage_guidelines="Ask for the number first.",
)


def request(
    model: str = "gpt-4o-mini", messages: Iterable[PromptMessage] = (PromptMessage(Role.USER, PROMPT),), tools: tuple[ToolSpec, ...] = ()
) -> ModelRequest:
    return ModelRequest("openai", model, tuple(messages), tools, temperature=70, max_tokens=500)


def event(value: Any) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"id": "x", "model": "gpt-4o-mini-2024-07-18", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def piece(index: int | None = 0, text: str | None = None, name: str | None = None, id: str | None = None) -> dict[str, Any]:
    function = {key: value for key, value in (("name", name), ("arguments", text)) if value is not None}
    return {key: value for key, value in (("index", index), ("id", id), ("function", function)) if value is not None}


USAGE = {
    "choices": [],
    "usage": {
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "prompt_tokens_details": {"cached_tokens": 64},
        "completion_tokens_details": {"reasoning_tokens": 5},
    },
}
TEXT = [chunk(role="assistant", content=""), chunk(content="Yes, "), chunk(content="it is."), chunk("stop"), USAGE, b"[DONE]"]


def streaming(*events: Any, end: bool = True, **headers: str) -> Handler:
    return answering(b"".join(chunked([event(one) for one in events], end=end, **headers)))


async def ask(
    make_clients: MakeHttpClients,
    handler: Handler,
    model_request: ModelRequest | None = None,
    *,
    deadline_s: float = 20.0,
    deltas: list[str] | None = None,
    **settings: Any,
) -> tuple[ModelReply, Server]:
    async with serve(handler) as server:
        provider = provider_for("openai", make_clients(OPENAI_API_KEY=KEY, OPENAI_BASE_URL=server.url + "/v1", **settings))
        reply = await provider.complete(
            model_request or request(), on_delta=None if deltas is None else deltas.append, deadline_s=deadline_s
        )
        return reply, server


async def fail(make_clients: MakeHttpClients, handler: Handler, model_request: ModelRequest | None = None, **more: Any) -> TurnlineError:
    async with serve(handler) as server:
        provider = provider_for("openai", make_clients(OPENAI_API_KEY=KEY, OPENAI_BASE_URL=server.url + "/v1"))
        with pytest.raises(TurnlineError) as caught:
            await provider.complete(model_request or request(), **({"deadline_s": 20.0} | more))
        assert len(server.requests) == 1, "the fault is the server's answer to a request it really got"
    assert KEY not in str(caught.value)
    assert PROMPT not in str(caught.value)
    return caught.value


def error(message: str = "It is so.", **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, **more}}
