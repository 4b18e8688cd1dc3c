"""The load during a fault: messages with tool calls, sent over the API to several workspaces and sessions until all are accepted."""

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
CLIENT_TIMEOUT_S = 5.0  # the client's timeout, after which it sends the message again


@dataclass(frozen=True)
class Load:
    """The size and speed of the load. `latency_ms` is the latency of each model call."""

    messages: int = 40
    sessions: int = 20
    workspaces: int = 2
    over_s: float = 2.0
    latency_ms: int = 150


@dataclass(frozen=True)
class Tenancy:
    """A workspace of the load, with its API key."""

    workspace_id: UUID
    api_key: str
    session_ids: tuple[UUID, ...]


async def prepare(stack: Stack, load: Load) -> list[Tenancy]:
    """Create the workspaces, agents, tools and sessions, without the proxies."""
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
    """Return a message whose reply takes three model calls and, between them, two calls of a tool with idempotency keys."""
    first, second = (f'{{"order": {2 * number + index}}}' for index in (0, 1))
    return f"Are these paid? [[call orders_lookup {first}]] [[then orders_lookup {second}]] [[latency {latency_ms}]]"


async def post_all(api_url: str, tenancies: list[Tenancy], load: Load) -> None:
    """Send every message, evenly over `load.over_s`, and send it again with the same key until the API answers 202."""
    began = time.monotonic()
    gate = asyncio.Semaphore(IN_FLIGHT)
    async with HttpxAiohttpClient(base_url=api_url, timeout=CLIENT_TIMEOUT_S) as client:

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
            raise AssertionError(f"message {number} was never accepted; the last response was {last}")

        await asyncio.gather(*(post(number) for number in range(load.messages)))


def reset_counts(stack: Stack) -> None:
    """Reset the sandbox's counts."""
    with urllib.request.urlopen(urllib.request.Request(f"{stack.sandbox_url}/_sandbox/reset", method="POST"), timeout=10):
        pass
