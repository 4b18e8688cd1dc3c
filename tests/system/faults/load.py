"""The load under a fault: messages with tool calls, over several workspaces and sessions, through the API, each accepted for sure."""

from __future__ import annotations

import asyncio
import time
import urllib.request
from dataclasses import dataclass
from uuid import UUID

import httpx
from httpx_aiohttp import HttpxAiohttpClient

from store.catalog import workspaces
from store.database import Database
from tests.support.factories import tenant
from tests.support.stack import TOOL, Stack

MODEL_CALLS = 3  # model, tool, model, tool, model
TOOL_CALLS = 2
ACCEPTED_WITHIN_S = 90.0
IN_FLIGHT = 100
OVERDUE_S = 5.0  # a client that has had no answer for this long asks again


@dataclass(frozen=True)
class Load:
    """How much, and how fast. `latency_ms` is the model's, for each of a turn's calls."""

    messages: int = 40
    sessions: int = 20
    workspaces: int = 2
    over_s: float = 2.0
    latency_ms: int = 150


@dataclass(frozen=True)
class Tenancy:
    """A workspace of the load, with the key that its client uses."""

    workspace_id: UUID
    api_key: str
    session_ids: tuple[UUID, ...]


async def prepare(stack: Stack, load: Load) -> list[Tenancy]:
    """Make the workspaces, agents, tools and sessions, past the proxies."""
    database = Database(stack.database_url, pool_size=4)
    await database.open()
    made = []
    try:
        for number in range(load.workspaces):
            created = await workspaces.create(database, f"Load {number}")
            integration = {"configuration": {"url": f"{stack.sandbox_url}/tools/orders_lookup"}}
            filled = await tenant(
                database,
                workspace_id=created.workspace_id,
                sessions=load.sessions // load.workspaces,
                strategy="enqueue",
                tools=({**TOOL, "integration": integration},),
            )
            made.append(Tenancy(created.workspace_id, created.api_key, tuple(filled.session_ids)))
    finally:
        await database.close()
    return made


def text(number: int, latency_ms: int) -> str:
    """A message whose answer takes three model calls and, between them, two calls of a keyed tool."""
    first, second = (f'{{"order": {2 * number + place}}}' for place in (0, 1))
    return f"Are these paid? [[call orders_lookup {first}]] [[then orders_lookup {second}]] [[latency {latency_ms}]]"


async def post_all(api_url: str, tenancies: list[Tenancy], load: Load) -> None:
    """Post every message, evenly over `load.over_s`; one that gets no 202 is posted again with the same key until it does."""
    began = time.monotonic()
    gate = asyncio.Semaphore(IN_FLIGHT)
    async with HttpxAiohttpClient(base_url=api_url, timeout=OVERDUE_S) as client:

        async def post(number: int) -> None:
            await asyncio.sleep(load.over_s * number / load.messages)
            tenancy = tenancies[number % len(tenancies)]
            session_id = tenancy.session_ids[number // len(tenancies) % len(tenancy.session_ids)]
            body = {"text": text(number, load.latency_ms), "message_key": f"message-{number}"}
            headers = {"Authorization": f"Bearer {tenancy.api_key}"}
            last = "nothing"
            while time.monotonic() < began + load.over_s + ACCEPTED_WITHIN_S:
                try:
                    async with gate:
                        reply = await client.post(f"/v1/sessions/{session_id}/messages", json=body, headers=headers)
                except httpx.TransportError as error:
                    last = type(error).__name__
                else:
                    if reply.status_code == 202:
                        return
                    last = f"{reply.status_code} {reply.text[:200]}"
                    assert reply.status_code >= 500 or reply.status_code == 429, last
                await asyncio.sleep(0.25)
            raise AssertionError(f"message {number} was never accepted; the last answer was {last}")

        await asyncio.gather(*(post(number) for number in range(load.messages)))


def reset_counts(stack: Stack) -> None:
    """Let the stand-in vendor count from nothing."""
    with urllib.request.urlopen(urllib.request.Request(f"{stack.sandbox_url}/_sandbox/reset", method="POST"), timeout=10):
        pass
