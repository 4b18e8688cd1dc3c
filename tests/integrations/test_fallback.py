"""A tool with several integrations: the next one takes over where nothing can have been done, and nowhere else."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from engine.enums import Effect, ToolStatus
from engine.turn.context import IntegrationSpec, ToolSpec
from integrations.executor import Performer
from integrations.tools import retries
from tests.support.http_servers import Request, answering, free_port, reset, response, serve
from tests.support.tool_calls import OK, MakeOutside, call, tool

HERE = response({"from": "the second"})


@pytest.fixture
def performer(outside: MakeOutside, monkeypatch: pytest.MonkeyPatch) -> Performer:
    monkeypatch.setattr(retries, "BELIEVED_AFTER_S", 0.05)
    made = outside()
    return Performer(made.settings, made)


def both(first: ToolSpec, second: ToolSpec) -> ToolSpec:
    return replace(first, integrations=first.integrations + second.integrations)


def nowhere() -> str:
    return f"http://127.0.0.1:{free_port()}"


@pytest.mark.parametrize("effect", list(Effect))
async def test_the_next_one_takes_over_from_one_that_cannot_be_reached(performer: Performer, effect: Effect):
    async with serve(answering(HERE)) as second:
        what = both(tool(nowhere(), effect), tool(second, effect))
        outcome = await call(performer, what)
    assert (outcome.status, outcome.result, outcome.requests) == (ToolStatus.SUCCEEDED, {"from": "the second"}, 1)
    assert outcome.integration_id == what.integrations[1].id
    assert [request.headers["idempotency-key"] for request in second.requests] == ["key-1"]


@pytest.mark.parametrize(
    ("answer", "effect", "status", "asked"),
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
async def test_who_is_asked_after_what(performer: Performer, answer: bytes, effect: Effect, status: ToolStatus, asked: tuple[int, int]):
    async with serve(answering(answer)) as first, serve(answering(HERE)) as second:
        outcome = await call(performer, both(tool(first, effect), tool(second, effect)))
    assert (outcome.status, (len(first.requests), len(second.requests))) == (status, asked)
    assert outcome.requests == sum(asked)


async def broken(_request: Request, writer: asyncio.StreamWriter) -> None:
    reset(writer)


@pytest.mark.parametrize("effect", list(Effect))
async def test_after_a_lost_reply_only_a_pure_call_goes_elsewhere(performer: Performer, effect: Effect):
    async with serve(broken) as first, serve(answering(HERE)) as second:
        outcome = await call(performer, both(tool(first, effect), tool(second, effect)))
    assert outcome.status is (ToolStatus.SUCCEEDED if effect is Effect.PURE else ToolStatus.UNKNOWN)
    assert len(second.requests) == (1 if effect is Effect.PURE else 0)


async def test_a_call_whose_status_says_no_stays_where_it_was(performer: Performer):
    """Its status may be wrong by a moment; there, at least, the key is known."""
    answers = [b"", response("{}", 429), response("{}", 429)]

    async def handle(_request: Request, writer: asyncio.StreamWriter) -> None:
        answer = answers.pop(0)
        writer.write(answer) if answer else reset(writer)

    async with serve(handle) as first, serve(answering(response("{}", 404))) as ledger, serve(answering(HERE)) as second:
        what = both(tool(first, Effect.QUERYABLE, status={"url": ledger.url}), tool(second, Effect.QUERYABLE))
        outcome = await call(performer, what)
    assert (outcome.status, len(first.requests), len(second.requests)) == (ToolStatus.FAILED, 3, 0)


async def test_where_nobody_can_be_reached_the_last_one_is_tried_again(performer: Performer):
    what = both(tool(nowhere()), tool(nowhere()))
    outcome = await call(performer, what)
    assert (outcome.status, outcome.requests, outcome.integration_id) == (ToolStatus.FAILED, 0, what.integrations[1].id)


async def test_an_integration_of_an_unknown_kind_is_passed_over(performer: Performer):
    async with serve(answering(HERE)) as second:
        what = tool(second)
        what = replace(what, integrations=(IntegrationSpec(uuid4(), "carrier_pigeon", {}), *what.integrations))
        assert (await call(performer, what)).status is ToolStatus.SUCCEEDED


async def test_a_begun_idempotent_call_is_unknown_where_several_could_have_made_it(performer: Performer):
    """The former attempt may have gone to the second one; the first would do it again."""
    async with serve(answering(OK)) as first, serve(answering(HERE)) as second:
        outcome = await call(performer, both(tool(first, Effect.IDEMPOTENT), tool(second, Effect.IDEMPOTENT)), begun=True)
        assert (outcome.status, outcome.requests) == (ToolStatus.UNKNOWN, 0)
        assert first.connections == second.connections == 0


@pytest.mark.parametrize(
    ("statuses", "status", "asked", "result"),
    [
        ((404, 200), ToolStatus.SUCCEEDED, 0, {"happened": True}),
        ((404, 404), ToolStatus.SUCCEEDED, 1, {"paid": True}),
        ((404, 401), ToolStatus.UNKNOWN, 0, None),
        ((401, 404), ToolStatus.UNKNOWN, 0, None),
        ((401, 200), ToolStatus.SUCCEEDED, 0, {"happened": True}),
    ],
)
async def test_a_begun_queryable_call_is_asked_for_everywhere(
    performer: Performer, statuses: tuple[int, int], status: ToolStatus, asked: int, result: Any
):
    told = [response({"happened": True}, code) for code in statuses]
    async with serve(answering(OK)) as server, serve(answering(told[0])) as one, serve(answering(told[1])) as two:
        first, second = (tool(server, Effect.QUERYABLE, status={"url": ledger.url}) for ledger in (one, two))
        outcome = await call(performer, both(first, second), begun=True)
    assert (outcome.status, len(server.requests), outcome.result) == (status, asked, result)
