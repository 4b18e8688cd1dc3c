"""The API in a thread, and clients of it, for the API's tests."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID

import httpx
import uvicorn
from fastapi import FastAPI

from api.app import create_app
from api.dependencies import AppState
from engine.enums import AccessRole
from settings import Settings
from store.catalog import workspaces
from tests.support.db import fetch, opened
from tests.support.servers import SECRET_KEY, until

__all__ = ["SECRET_KEY", "Service", "Tenant", "opened", "run_in_thread", "serving"]

Result = TypeVar("Result")
TURN = UUID(int=7)


def run_in_thread(work: Callable[[], Awaitable[Result]]) -> Result:
    """Run `work` on an event loop in another thread, and return its result."""

    async def run() -> Result:
        return await work()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(run())).result()


@dataclass(slots=True)
class Tenant:
    """A workspace, and a client with one of its keys. Calls are made over a real socket."""

    workspace_id: UUID
    api_key: str
    http: httpx.Client
    service: Service

    def call(self, method: str, path: str, expect: int | None = None, **options: Any) -> Any:
        """Return the answer's JSON; assert that its status is `expect`, if given."""
        answer = self.http.request(method, path, **options)
        assert expect is None or answer.status_code == expect, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def agent(self, **fields: Any) -> dict[str, Any]:
        """Create an agent."""
        made: dict[str, Any] = self.call("POST", "/v1/agents", 201, json={"name": "Ada", **fields})
        return made

    def tool(self, name: str = "lookup", **fields: Any) -> dict[str, Any]:
        """Create a tool."""
        made: dict[str, Any] = self.call("POST", "/v1/tools", 201, json={"name": name, **fields})
        return made

    def integration(self, tool_id: str, **fields: Any) -> dict[str, Any]:
        """Create an integration of a tool."""
        body = {"integration_type": "custom_tool", "configuration": {"url": "https://shop.example/x"}, **fields}
        made: dict[str, Any] = self.call("POST", f"/v1/tools/{tool_id}/integrations", 201, json=body)
        return made

    def budget(self, **fields: Any) -> dict[str, Any]:
        """Create a budget, by default the workspace's."""
        body = {"scope": "workspace", "unit": "usd", "period": "total", "cap": "10", **fields}
        made: dict[str, Any] = self.call("POST", "/v1/budgets", 201, json=body)
        return made

    def session(self, **fields: Any) -> dict[str, Any]:
        """Create a session, with a new agent unless one is given."""
        fields.setdefault("agent_id", None)
        fields["agent_id"] = fields["agent_id"] or self.agent()["id"]
        made: dict[str, Any] = self.call("POST", "/v1/sessions", 201, json=fields)
        return made

    def message(self, session_id: str, text: str = "Is order 41 paid?", **fields: Any) -> dict[str, Any]:
        """Post a message and return its acceptance."""
        made: dict[str, Any] = self.call("POST", f"/v1/sessions/{session_id}/messages", 202, json={"text": text, **fields})
        return made

    def append_event(self, session_id: str, kind: str, content: dict[str, Any], turn_id: str | None = None) -> int:
        """Append an event and publish it, as a worker does; return its offset."""
        one = json.dumps([{"kind": kind, "source": "ai_agent", "content": content}])
        query = "SELECT append_events(%s, %s, %s, 0, %s::jsonb)"
        [(offset,)] = self.service.sql(query, self.workspace_id, UUID(session_id), turn_id and UUID(turn_id), one)
        self.service.run_on_server(lambda: self.service.app_state.publisher.log_advanced(UUID(session_id), offset))
        return int(offset)

    def publish_delta(self, session_id: str, text: str, turn_id: UUID = TURN, attempt: int = 1) -> None:
        """Publish streamed text, as a worker does."""
        self.service.run_on_server(lambda: self.service.app_state.publisher.token_delta(UUID(session_id), turn_id, attempt, text))

    def subscription_count(self, session_id: str) -> int:
        """Return the number of subscriptions to the session's realtime messages."""
        return len(self.service.app_state.subscriber._subscriptions.get(f"turnline:session:{session_id}", ()))

    def key(self, role: str = "admin", user_id: UUID | None = None) -> workspaces.CreatedKey:
        """Create another key of the workspace."""

        async def make() -> workspaces.CreatedKey:
            async with opened(self.service.database_url) as database:
                return await workspaces.create_api_key(database, self.workspace_id, role=AccessRole(role), user_id=user_id)

        return run_in_thread(make)

    def revoke(self, key_id: UUID) -> bool:
        """Revoke a key."""

        async def do() -> bool:
            async with opened(self.service.database_url) as database:
                return await workspaces.revoke_api_key(database, self.workspace_id, key_id)

        return run_in_thread(do)

    @contextmanager
    def using(self, key_text: str) -> Iterator[Tenant]:
        """Return the same workspace with another key."""
        with self.service.client(key_text) as http:
            yield Tenant(self.workspace_id, key_text, http, self.service)


@dataclass(slots=True)
class Service:
    """A running API."""

    app: FastAPI
    port: int
    database_url: str
    loop: asyncio.AbstractEventLoop = field(repr=False)

    @property
    def url(self) -> str:
        """Return its base URL."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def app_state(self) -> AppState:
        """Return the application's state."""
        app_state: AppState = self.app.state.app_state
        return app_state

    def run_on_server(self, work: Callable[[], object]) -> None:
        """Run `work` on the server's loop, and return when it is done."""
        done = threading.Event()

        def do() -> None:
            work()
            done.set()

        self.loop.call_soon_threadsafe(do)
        assert done.wait(10)

    def client(self, key_text: str) -> httpx.Client:
        """Return a client with a key."""
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {key_text}"}, timeout=30, trust_env=False)

    @contextmanager
    def tenant(self, name: str) -> Iterator[Tenant]:
        """Create a workspace."""

        async def make() -> workspaces.Created:
            async with opened(self.database_url) as database:
                return await workspaces.create(database, name)

        made = run_in_thread(make)
        with self.client(made.api_key) as http:
            yield Tenant(made.workspace_id, made.api_key, http, self)

    def sql(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Return the rows of `query`, run as the superuser, who sees every tenant."""
        return fetch(self.database_url, query, *parameters)


def settings(**values: Any) -> Settings:
    """Return settings that come from `values` only."""
    return Settings(_env_file=None, **values)


@contextmanager
def serving(**values: Any) -> Iterator[Service]:
    """Serve the API with these settings on a free port of loopback until the block ends."""
    app = create_app(settings(db_pool_size=10, **values))
    listening = socket.create_server(("127.0.0.1", 0))
    # asyncio turns Nagle's algorithm off for sockets it made itself only; with it, every answer would take 40 ms.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=5))
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve([listening])

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="api")
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        assert server.started
        yield Service(app, listening.getsockname()[1], str(values["DATABASE_URL"]), loops[0])
    finally:
        if server.started:
            loops[0].call_soon_threadsafe(app.state.app_state.stopping.set)
        server.should_exit = True
        thread.join(15)
        assert not thread.is_alive(), "the server did not stop"
