"""Tools with several integrations: the next one is used only if the call cannot have been executed."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from engine.enums import Effect, ToolStatus
from engine.tools.spec import IntegrationSpec, ToolSpec
from integrations.executor import Performer
from integrations.tools import retries
from tests.support.http_clients import MakeHttpClients
from tests.support.http_servers import Request, answering, free_port, reset, response, serve
from tests.support.http_tools import OK, call_tool, make_tool

SECOND_OK = response({"from": "the second"})


@pytest.fixture
def performer(make_clients: MakeHttpClients, monkeypatch: pytest.MonkeyPatch) -> Performer:
    monkeypatch.setattr(retries, "CONFIRM_NOT_DONE_AFTER_S", 0.05)
    clients = make_clients()
    return Performer(clients.settings, clients)


def both(first: ToolSpec, second: ToolSpec) -> ToolSpec:
    return replace(first, integrations=first.integrations + second.integrations)


def unreachable_url() -> str:
    return f"http://127.0.0.1:{free_port()}"


@pytest.mark.parametrize("effect", list(Effect))
async def test_falls_back_if_the_first_integration_is_unreachable(performer: Performer, effect: Effect):
    async with serve(answering(SECOND_OK)) as second:
        tool_spec = both(make_tool(unreachable_url(), effect), make_tool(second, effect))
        outcome = await call_tool(performer, tool_spec)
    assert (outcome.status, outcome.result, outcome.requests) == (ToolStatus.SUCCEEDED, {"from": "the second"}, 1)
    assert outcome.integration_id == tool_spec.integrations[1].id
    assert [request.headers["idempotency-key"] for request in second.requests] == ["key-1"]


@pytest.mark.parametrize(
    ("answer", "effect", "status", "requests"),
    [
        (response("{}", 429), Effect.UNSAFE, ToolStatus.SUCCEEDED, (1, 1)),
        (response("{}", 500), Effect.PURE, ToolStatus.SUCCEEDED, (1, 1)),
        (response("{}", 500), Effect.IDEMPOTENT, ToolStatus.UNKNOWN, (3, 0)),
        (response("{}", 500), Effect.QUERYABLE, ToolStatus.UNKNOWN, (1, 0)),
        (response("{}", 500), Effect.UNSAFE, ToolStatus.UNKNOWN, (1, 0)),
        (response("{}", 302), Effect.IDEMPOTENT, ToolStatus.UNKNOWN, (1, 0)),
        (response("{}", 403), Effect.IDEMPOTENT, ToolStatus.FAILED, (1, 0)),
        (response("{}", 403), Effect.PURE, ToolStatus.FAILED, (1, 0)),
        (response("{nope"), Effect.IDEMPOTENT, ToolStatus.FAILED, (1, 0)),
        (OK, Effect.UNSAFE, ToolStatus.SUCCEEDED, (1, 0)),
    ],
)
async def test_fallback_depends_on_answer_and_effect(
    performer: Performer, answer: bytes, effect: Effect, status: ToolStatus, requests: tuple[int, int]
):
    async with serve(answering(answer)) as first, serve(answering(SECOND_OK)) as second:
        outcome = await call_tool(performer, both(make_tool(first, effect), make_tool(second, effect)))
    assert (outcome.status, (len(first.requests), len(second.requests))) == (status, requests)
    assert outcome.requests == sum(requests)


async def reset_connection(_request: Request, writer: asyncio.StreamWriter) -> None:
    reset(writer)


@pytest.mark.parametrize("effect", list(Effect))
async def test_after_a_lost_reply_only_pure_calls_fall_back(performer: Performer, effect: Effect):
    async with serve(reset_connection) as first, serve(answering(SECOND_OK)) as second:
        outcome = await call_tool(performer, both(make_tool(first, effect), make_tool(second, effect)))
    assert outcome.status is (ToolStatus.SUCCEEDED if effect is Effect.PURE else ToolStatus.UNKNOWN)
    assert len(second.requests) == (1 if effect is Effect.PURE else 0)


async def test_a_call_denied_by_its_status_does_not_fall_back(performer: Performer):
    """Its status may lag; only the first integration knows the idempotency key."""
    answers = [b"", response("{}", 429), response("{}", 429)]

    async def handle(_request: Request, writer: asyncio.StreamWriter) -> None:
        answer = answers.pop(0)
        writer.write(answer) if answer else reset(writer)

    async with serve(handle) as first, serve(answering(response("{}", 404))) as ledger, serve(answering(SECOND_OK)) as second:
        tool_spec = both(make_tool(first, Effect.QUERYABLE, status={"url": ledger.url}), make_tool(second, Effect.QUERYABLE))
        outcome = await call_tool(performer, tool_spec)
    assert (outcome.status, len(first.requests), len(second.requests)) == (ToolStatus.FAILED, 3, 0)


async def test_the_last_integration_is_retried_if_none_is_reachable(performer: Performer):
    tool_spec = both(make_tool(unreachable_url()), make_tool(unreachable_url()))
    outcome = await call_tool(performer, tool_spec)
    assert (outcome.status, outcome.requests, outcome.integration_id) == (ToolStatus.FAILED, 0, tool_spec.integrations[1].id)


async def test_integrations_of_unknown_type_are_skipped(performer: Performer):
    async with serve(answering(SECOND_OK)) as second:
        tool_spec = make_tool(second)
        tool_spec = replace(tool_spec, integrations=(IntegrationSpec(uuid4(), "carrier_pigeon", {}), *tool_spec.integrations))
        assert (await call_tool(performer, tool_spec)).status is ToolStatus.SUCCEEDED


async def test_a_begun_idempotent_call_with_several_integrations_is_unknown(performer: Performer):
    """The earlier run may have used the second integration; the first would execute the call again."""
    async with serve(answering(OK)) as first, serve(answering(SECOND_OK)) as second:
        outcome = await call_tool(performer, both(make_tool(first, Effect.IDEMPOTENT), make_tool(second, Effect.IDEMPOTENT)), begun=True)
        assert (outcome.status, outcome.requests) == (ToolStatus.UNKNOWN, 0)
        assert first.connections == second.connections == 0


@pytest.mark.parametrize(
    ("status_codes", "status", "requests", "result"),
    [
        ((404, 200), ToolStatus.SUCCEEDED, 0, {"happened": True}),
        ((404, 404), ToolStatus.SUCCEEDED, 1, {"paid": True}),
        ((404, 401), ToolStatus.UNKNOWN, 0, None),
        ((401, 404), ToolStatus.UNKNOWN, 0, None),
        ((401, 200), ToolStatus.SUCCEEDED, 0, {"happened": True}),
    ],
)
async def test_the_status_of_a_begun_call_is_queried_at_every_integration(
    performer: Performer, status_codes: tuple[int, int], status: ToolStatus, requests: int, result: Any
):
    status_answers = [response({"happened": True}, code) for code in status_codes]
    async with (
        serve(answering(OK)) as server,
        serve(answering(status_answers[0])) as first_status,
        serve(answering(status_answers[1])) as second_status,
    ):
        first, second = (make_tool(server, Effect.QUERYABLE, status={"url": ledger.url}) for ledger in (first_status, second_status))
        outcome = await call_tool(performer, both(first, second), begun=True)
    assert (outcome.status, len(server.requests), outcome.result) == (status, requests, result)
