"""The API in this process, on a real Postgres and a real Valkey, and callers of it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from api.app import create_app
from settings import Settings
from store import workspaces
from store.database import Database
from tests.servers import SECRET_KEY


class Door:
    """A running application and ways to call it."""

    def __init__(self, app: FastAPI, stack: contextlib.AsyncExitStack) -> None:
        self.app, self._stack = app, stack

    @property
    def database(self) -> Database:
        return self.app.state.front.database

    async def caller(self, key: str | None, **headers: str) -> httpx.AsyncClient:
        """A client that sends this key."""
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False, client=("127.0.0.1", 4711))
        client = httpx.AsyncClient(transport=transport, base_url="http://api", headers=headers)
        return await self._stack.enter_async_context(client)

    async def tenant(self, name: str = "Acme") -> Tenant:
        """A new workspace and its admin."""
        created = await workspaces.create(self.database, name)
        return Tenant(self, created, await self.caller(created.api_key))


class Tenant:
    """A workspace, as the program that holds its first key sees it."""

    def __init__(self, door: Door, created: workspaces.Created, http: httpx.AsyncClient) -> None:
        self.door, self.id, self.key, self.http = door, created.workspace_id, created.api_key, http

    async def made(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """What POST `path` made."""
        response = await self.http.post(path, json=body)
        assert response.status_code in (201, 202), response.text
        return response.json()

    async def agent(self, **fields: Any) -> dict[str, Any]:
        return await self.made("/v1/agents", {"name": "Ada", "model_name": "gpt-4o", **fields})

    async def tool(self, name: str = "orders_lookup", **fields: Any) -> dict[str, Any]:
        return await self.made("/v1/tools", {"name": name, **fields})

    async def integration(self, tool_id: str, **fields: Any) -> dict[str, Any]:
        body = {"integration_type": "custom_tool", "configuration": {"url": "https://shop.example/orders", "method": "POST"}, **fields}
        return await self.made(f"/v1/tools/{tool_id}/integrations", body)

    async def session(self, agent_id: str | None = None, **fields: Any) -> dict[str, Any]:
        return await self.made("/v1/sessions", {"agent_id": agent_id or (await self.agent())["id"], **fields})

    async def message(self, session_id: str, text: str = "Is order 41 paid?", **fields: Any) -> dict[str, Any]:
        return await self.made(f"/v1/sessions/{session_id}/messages", {"text": text, **fields})

    async def with_role(self, role: workspaces.Role, **key: Any) -> httpx.AsyncClient:
        """A caller of the same workspace whose key has another role."""
        made = await workspaces.create_api_key(self.door.database, self.id, role=role, **key)
        return await self.door.caller(made.text)


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Door]:
    """The application, started with these settings; stopped at the end."""
    app = create_app(settings)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(app.router.lifespan_context(app))
        yield Door(app, stack)


def settings_for(database_url: str, broker_url: str, **values: Any) -> Settings:
    """Settings for an API on these servers, and nothing from the environment that matters here."""
    given = {"DATABASE_URL": database_url, "CELERY_BROKER_URL": broker_url, "REDIS_URL": "", "secret_keys": SECRET_KEY}
    return Settings(**(given | values))


@pytest.fixture
def settings(database_url: str, broker_url: str) -> Settings:
    return settings_for(database_url, broker_url)


@pytest.fixture
async def door(settings: Settings) -> AsyncIterator[Door]:
    async with opened(settings) as made:
        yield made


@pytest.fixture
async def tenant(door: Door) -> Tenant:
    return await door.tenant()
