"""A running sandbox, and helpers that send it raw requests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from sandbox.server import Sandbox

TIMEOUT_S = 20.0
SHORT_S = 0.1  # for replies that must not arrive
ORDERS = {
    "type": "function",
    "function": {
        "name": "orders_lookup",
        "description": "Look an order up.",
        "parameters": {"type": "object", "properties": {"order": {"type": "integer"}}, "required": ["order"]},
    },
}


@dataclass
class Response:
    """A raw response. `end` is complete, closed (too early), reset or silent."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    end: str = "complete"

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[str]:
        return [line[6:] for line in self.body.decode().split("\n\n") if line.startswith("data: ")]

    def chunks(self) -> list[dict[str, Any]]:
        return [json.loads(event) for event in self.events() if event != "[DONE]"]

    def content(self) -> str:
        return "".join(choice["delta"].get("content") or "" for chunk in self.chunks() for choice in chunk["choices"])


async def send_request(port: int, method: str, target: str, body: bytes, headers: dict[str, str], timeout_s: float = TIMEOUT_S) -> Response:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    writer.write(f"{method} {target} HTTP/1.1\r\nhost: sandbox\r\n{lines}content-length: {len(body)}\r\n\r\n".encode() + body)
    received = Response()
    try:
        await _read_response(reader, received, timeout_s)
    except ConnectionResetError:
        received.end = "reset"
    except asyncio.IncompleteReadError as short:
        received.end = "closed"
        received.body += short.partial
    except TimeoutError:
        received.end = "silent"
    finally:
        writer.transport.abort()
    return received


async def _read_response(reader: asyncio.StreamReader, received: Response, timeout_s: float) -> None:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), timeout_s)
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    received.status = int(first.split(" ")[1])
    received.headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    if "content-length" in received.headers:
        remaining = int(received.headers["content-length"])
        while remaining:
            got = await asyncio.wait_for(reader.read(remaining), timeout_s)
            if not got:
                raise asyncio.IncompleteReadError(b"", remaining)
            received.body += got
            remaining -= len(got)
        return
    while size := int(await asyncio.wait_for(reader.readuntil(b"\r\n"), timeout_s), 16):
        received.body += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)


Ask = Callable[..., Awaitable[Response]]


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(pace_s=0.0001) as running:
        yield running


@pytest.fixture
def ask(sandbox: Sandbox) -> Ask:
    """Return a function that sends a text or messages to the model, with further request fields."""

    async def ask(
        prompt: str | list[dict[str, Any]], *, query: str = "", headers: dict[str, str] | None = None, silent: bool = False, **fields: Any
    ) -> Response:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        body = json.dumps({"model": "gpt-4o-mini", "messages": messages, **fields}).encode()
        sent = {"authorization": "Bearer key"} | (headers or {})
        return await send_request(sandbox.port, "POST", f"/v1/chat/completions{query}", body, sent, SHORT_S if silent else TIMEOUT_S)

    return ask


@pytest.fixture
def call(sandbox: Sandbox) -> Ask:
    """Return a function that calls a tool."""

    async def call(
        name: str, arguments: Any = None, *, query: str = "", headers: dict[str, str] | None = None, silent: bool = False
    ) -> Response:
        body = json.dumps(arguments).encode() if arguments is not None else b""
        method = "POST" if body else "GET"
        return await send_request(sandbox.port, method, f"/tools/{name}{query}", body, headers or {}, SHORT_S if silent else TIMEOUT_S)

    return call


@pytest.fixture
def fetch(sandbox: Sandbox) -> Ask:
    """Return a function that sends any request."""

    async def fetch(method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Response:
        return await send_request(sandbox.port, method, target, body, headers or {})

    return fetch


@pytest.fixture
def orders() -> dict[str, Any]:
    return ORDERS
