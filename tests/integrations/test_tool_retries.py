"""Retries of HTTP tools: after each fault, the tool's effect decides whether the call is sent again and what is known."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from engine.enums import Effect, ToolStatus
from engine.events import ToolCall
from engine.tools.spec import ToolSpec
from integrations.executor import Performer
from tests.support.http_servers import Handler, Request, answering, free_port, never, reset, response, serve
from tests.support.http_tools import OK, call_tool, make_tool


def failing(times: int, fail: Callable[[asyncio.StreamWriter], None]) -> Handler:
    """Fail the first `times` requests with `fail`, then answer OK."""
    remaining = times

    async def handle(_request: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal remaining
        if remaining:
            remaining -= 1
            fail(writer)
        else:
            writer.write(OK)

    return handle


def server_error(writer: asyncio.StreamWriter) -> None:
    writer.write(response("{}", 500))


def rate_limit(writer: asyncio.StreamWriter) -> None:
    writer.write(response("{}", 429, retry_after="0.05"))


@pytest.mark.parametrize("fail", [reset, server_error, rate_limit])
@pytest.mark.parametrize("effect", [Effect.PURE, Effect.IDEMPOTENT])
async def test_repeatable_calls_are_tried_three_times_with_one_key(performer: Performer, effect: Effect, fail: Any):
    async with serve(failing(2, fail)) as server:
        outcome = await call_tool(performer, make_tool(server, effect))
    assert (outcome.status, outcome.requests) == (ToolStatus.SUCCEEDED, 3)
    assert [request.headers["idempotency-key"] for request in server.requests] == ["key-1"] * 3


@pytest.mark.parametrize(
    ("fail", "effect", "status", "requests"),
    [
        (reset, Effect.PURE, ToolStatus.FAILED, 3),
        (reset, Effect.IDEMPOTENT, ToolStatus.UNKNOWN, 3),
        (reset, Effect.QUERYABLE, ToolStatus.UNKNOWN, 1),
        (reset, Effect.UNSAFE, ToolStatus.UNKNOWN, 1),
        (server_error, Effect.PURE, ToolStatus.FAILED, 3),
        (server_error, Effect.IDEMPOTENT, ToolStatus.UNKNOWN, 3),
        (server_error, Effect.UNSAFE, ToolStatus.UNKNOWN, 1),
        (rate_limit, Effect.IDEMPOTENT, ToolStatus.FAILED, 3),
        (rate_limit, Effect.UNSAFE, ToolStatus.FAILED, 3),
    ],
)
async def test_outcome_when_every_attempt_fails(performer: Performer, fail: Any, effect: Effect, status: ToolStatus, requests: int):
    async with serve(failing(99, fail)) as server:
        outcome = await call_tool(performer, make_tool(server, effect))
    assert outcome.status is status
    assert outcome.requests == len(server.requests) == requests
    assert ("may or may not have happened" in (outcome.error or "")) is (status is ToolStatus.UNKNOWN)


@pytest.mark.parametrize(
    ("effect", "status", "requests"),
    [(Effect.PURE, ToolStatus.SUCCEEDED, 1), (Effect.IDEMPOTENT, ToolStatus.SUCCEEDED, 1), (Effect.UNSAFE, ToolStatus.UNKNOWN, 0)],
)
async def test_repeating_a_begun_call_depends_on_its_effect(performer: Performer, effect: Effect, status: ToolStatus, requests: int):
    async with serve(answering(OK)) as server:
        outcome = await call_tool(performer, make_tool(server, effect), begun=True)
    assert outcome.status is status
    assert outcome.requests == len(server.requests) == requests


async def test_outcome_stays_unknown_after_a_lost_reply_and_a_rate_limit(performer: Performer):
    first = True

    async def handle(_request: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal first
        if first:
            first = False
            reset(writer)
        else:
            writer.write(response("{}", 429, retry_after="60"))

    async with serve(handle) as server:
        outcome = await call_tool(performer, make_tool(server, Effect.IDEMPOTENT))
    assert (outcome.status, len(server.requests)) == (ToolStatus.UNKNOWN, 2)


def refuse(status: int) -> Callable[[asyncio.StreamWriter], None]:
    return lambda writer: writer.write(response({"error": "No."}, status))


@pytest.mark.parametrize("status", [400, 404, 409])
@pytest.mark.parametrize("begun", [False, True])
async def test_a_client_error_after_a_lost_reply_proves_nothing(performer: Performer, status: int, begun: bool):
    """The first attempt may have been executed: a second cancellation finds no order, a call in progress is in conflict."""
    answers = [refuse(status)] if begun else [reset, refuse(status)]

    async def handle(_request: Request, writer: asyncio.StreamWriter) -> None:
        answers.pop(0)(writer)

    async with serve(handle) as server:
        outcome = await call_tool(performer, make_tool(server, Effect.IDEMPOTENT), begun=begun)
    assert outcome.status is ToolStatus.UNKNOWN
    assert f"The tool answered {status}" in (outcome.error or "")


async def test_a_begun_call_is_unknown_if_the_server_is_unreachable(performer: Performer):
    unreachable = f"http://127.0.0.1:{free_port()}"
    for effect, status in (
        (Effect.PURE, ToolStatus.FAILED),
        (Effect.IDEMPOTENT, ToolStatus.UNKNOWN),
        (Effect.QUERYABLE, ToolStatus.UNKNOWN),
    ):
        assert (await call_tool(performer, make_tool(unreachable, effect), begun=True)).status is status
        unmapped = ToolSpec(uuid4(), "x", "", {}, effect=effect)
        assert (await call_tool(performer, unmapped, begun=True)).status is status
    assert (await performer.use_tool(None, ToolCall("c", "gone", {}), "k", 5, begun=True)).status is ToolStatus.UNKNOWN
    garbled = await performer.use_tool(None, ToolCall("c", "gone", None, "{nope"), "k", 5, begun=True)
    assert garbled.status is ToolStatus.FAILED, "arguments that are not JSON were never sent"


@pytest.mark.parametrize("retry_after", ["6", "86400"])
async def test_a_long_retry_after_is_not_waited_for(performer: Performer, retry_after: str):
    async with serve(answering(response("{}", 429, retry_after=retry_after))) as server:
        outcome = await call_tool(performer, make_tool(server, Effect.PURE), deadline_s=60)
    assert (outcome.status, len(server.requests)) == (ToolStatus.FAILED, 1)


async def test_refused_connections_are_retried_and_not_counted(performer: Performer):
    for effect in Effect:
        outcome = await call_tool(performer, make_tool(f"http://127.0.0.1:{free_port()}", effect))
        assert (outcome.status, outcome.requests) == (ToolStatus.FAILED, 0)


async def test_a_retry_reaches_a_server_that_has_come_back(performer: Performer):
    port = free_port()
    task = asyncio.create_task(call_tool(performer, make_tool(f"http://127.0.0.1:{port}")))
    await asyncio.sleep(0.05)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", port):
        assert (await task).status is ToolStatus.SUCCEEDED


@pytest.mark.parametrize(("effect", "status"), [(Effect.UNSAFE, ToolStatus.UNKNOWN), (Effect.PURE, ToolStatus.FAILED)])
async def test_the_deadline_covers_all_attempts(performer: Performer, effect: Effect, status: ToolStatus):
    async with serve(never) as server:
        outcome = await call_tool(performer, make_tool(server, effect), deadline_s=0.3)
        assert outcome.status is status
        assert outcome.requests == len(server.requests) == 1


async def test_the_configured_timeout_limits_one_attempt(performer: Performer):
    async with serve(never) as server:
        outcome = await call_tool(performer, make_tool(server, timeout_s=0.2), deadline_s=60)
        assert outcome.status is ToolStatus.UNKNOWN
        assert len(server.requests) == 1
