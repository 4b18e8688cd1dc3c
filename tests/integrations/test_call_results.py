"""Health reports from real tool calls: healthy, failed, or no report."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from engine.enums import Effect
from engine.events import ToolCall
from engine.tools.spec import IntegrationSpec, ToolSpec
from integrations.executor import Performer
from tests.support.http_clients import MakeHttpClients
from tests.support.http_servers import Handler, answering, free_port, never, reset, response, serve

PARAMETERS = {"type": "object", "properties": {"order": {"type": "integer"}}, "required": ["order"]}


async def reports_of(make_clients: MakeHttpClients, url: str, *, order: object = 41, timeout_s: float = 5.0) -> list[str | None]:
    """Call a tool at `url`; return the errors that `on_result` received, None for each healthy answer."""
    clients, reports = make_clients(), list[tuple[UUID, str | None]]()
    spec = IntegrationSpec(uuid4(), "custom_tool", {"url": url, "timeout_s": timeout_s})
    tool = ToolSpec(uuid4(), "orders_lookup", "", PARAMETERS, effect=Effect.UNSAFE, integrations=(spec,))
    call = ToolCall("call_1", tool.name, {"order": order})
    await Performer(clients.settings, clients).use_tool(tool, call, "key-1", 20.0, on_result=lambda *report: reports.append(report))
    assert {integration_id for integration_id, _ in reports} <= {spec.id}
    return [error for _, error in reports]


@pytest.mark.parametrize("answer", [response({}), response(b"<html>", 200), response(b"", 404), response(b"", 401), response(b"", 302)])
async def test_any_answer_counts_as_healthy(make_clients: MakeHttpClients, answer: bytes):
    async with serve(answering(answer)) as server:
        assert await reports_of(make_clients, server.url) == [None]


async def test_a_rate_limit_counts_as_healthy(make_clients: MakeHttpClients):
    async with serve(answering(response(b"", 429, retry_after="0"), response({}))) as server:
        assert await reports_of(make_clients, server.url) == [None, None]


@pytest.mark.parametrize("status", [500, 503])
async def test_a_server_error_is_not_reported(make_clients: MakeHttpClients, status: int):
    async with serve(answering(response(b"", status))) as server:
        assert await reports_of(make_clients, server.url) == []


async def test_invalid_arguments_are_not_reported(make_clients: MakeHttpClients):
    async with serve(answering(response({}))) as server:
        assert await reports_of(make_clients, server.url, order="forty-one") == []


async def reset_connection(_request: Any, writer: Any) -> None:
    reset(writer)


@pytest.mark.parametrize(
    ("handler", "words"),
    [(never, "did not answer"), (reset_connection, "closed the connection"), (answering(b"220 mail.example ESMTP\r\n\r\n"), "not HTTP")],
    ids=["silent", "drops", "not http"],
)
async def test_a_missing_answer_is_a_failure(make_clients: MakeHttpClients, handler: Handler, words: str):
    async with serve(handler) as server:
        (error,) = await reports_of(make_clients, server.url, timeout_s=0.3)
    assert words in str(error)


async def test_a_refused_connection_is_a_failure_at_every_attempt(make_clients: MakeHttpClients):
    errors = await reports_of(make_clients, f"http://127.0.0.1:{free_port()}/")
    assert len(errors) == 3
    assert all("no connection" in str(error) for error in errors)
