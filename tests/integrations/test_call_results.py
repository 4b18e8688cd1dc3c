"""What real calls say of their integration's health: an answer, a failure, or nothing."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from engine.enums import Effect
from engine.events import ToolCall
from engine.turn.context import IntegrationSpec, ToolSpec
from integrations.executor import Performer
from tests.support.http_servers import Handler, answering, free_port, never, reset, response, serve
from tests.support.tool_calls import MakeOutside

PARAMETERS = {"type": "object", "properties": {"order": {"type": "integer"}}, "required": ["order"]}


async def heard(outside: MakeOutside, url: str, *, order: object = 41, timeout_s: float = 5.0) -> list[str | None]:
    made, told = outside(), list[tuple[UUID, str | None]]()
    spec = IntegrationSpec(uuid4(), "custom_tool", {"url": url, "timeout_s": timeout_s})
    tool = ToolSpec(uuid4(), "orders_lookup", "", PARAMETERS, effect=Effect.UNSAFE, integrations=(spec,))
    call = ToolCall("call_1", tool.name, {"order": order})
    await Performer(made.settings, made).use_tool(tool, call, "key-1", 20.0, on_result=lambda *one: told.append(one))
    assert {integration_id for integration_id, _ in told} <= {spec.id}
    return [error for _, error in told]


@pytest.mark.parametrize("answer", [response({}), response(b"<html>", 200), response(b"", 404), response(b"", 401), response(b"", 302)])
async def test_whatever_the_server_says_is_an_answer(outside: MakeOutside, answer: bytes):
    async with serve(answering(answer)) as server:
        assert await heard(outside, server.url) == [None]


async def test_a_rate_limit_is_an_answer_each_time(outside: MakeOutside):
    async with serve(answering(response(b"", 429, retry_after="0"), response({}))) as server:
        assert await heard(outside, server.url) == [None, None]


@pytest.mark.parametrize("status", [500, 503])
async def test_a_server_error_says_nothing(outside: MakeOutside, status: int):
    async with serve(answering(response(b"", status))) as server:
        assert await heard(outside, server.url) == []


async def test_arguments_that_are_never_sent_say_nothing(outside: MakeOutside):
    async with serve(answering(response({}))) as server:
        assert await heard(outside, server.url, order="forty-one") == []


async def drops(_request: Any, writer: Any) -> None:
    reset(writer)


@pytest.mark.parametrize(
    ("handler", "words"),
    [(never, "did not answer"), (drops, "closed the connection"), (answering(b"220 mail.example ESMTP\r\n\r\n"), "not HTTP")],
    ids=["silent", "drops", "not http"],
)
async def test_no_answer_is_a_failure(outside: MakeOutside, handler: Handler, words: str):
    async with serve(handler) as server:
        (error,) = await heard(outside, server.url, timeout_s=0.3)
    assert words in str(error)


async def test_nobody_listening_is_a_failure_at_every_try(outside: MakeOutside):
    errors = await heard(outside, f"http://127.0.0.1:{free_port()}/")
    assert len(errors) == 3
    assert all("no connection" in str(error) for error in errors)
