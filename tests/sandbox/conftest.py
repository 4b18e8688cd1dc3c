from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from sandbox.server import Sandbox

PATIENCE_S = 20.0
SHORT_S = 0.1  # for replies that are expected to stay away
ORDERS = {
    "type": "function",
    "function": {
        "name": "orders_lookup",
        "description": "Look an order up.",
        "parameters": {"type": "object", "properties": {"order": {"type": "integer"}}, "required": ["order"]},
    },
}


@dataclass
class Heard:
    """What came back, read byte by byte: `end` is complete, closed (too early), reset or silent."""

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


async def talk(port: int, method: str, target: str, body: bytes, headers: dict[str, str], patience_s: float = PATIENCE_S) -> Heard:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    writer.write(f"{method} {target} HTTP/1.1\r\nhost: sandbox\r\n{lines}content-length: {len(body)}\r\n\r\n".encode() + body)
    heard = Heard()
    try:
        await _listen(reader, heard, patience_s)
    except ConnectionResetError:
        heard.end = "reset"
    except asyncio.IncompleteReadError as short:
        heard.end = "closed"
        heard.body += short.partial
    except TimeoutError:
        heard.end = "silent"
    finally:
        writer.transport.abort()
    return heard


async def _listen(reader: asyncio.StreamReader, heard: Heard, patience_s: float) -> None:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), patience_s)
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    heard.status = int(first.split(" ")[1])
    heard.headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    if "content-length" in heard.headers:
        left = int(heard.headers["content-length"])
        while left:
            got = await asyncio.wait_for(reader.read(left), patience_s)
            if not got:
                raise asyncio.IncompleteReadError(b"", left)
            heard.body += got
            left -= len(got)
        return
    while size := int(await asyncio.wait_for(reader.readuntil(b"\r\n"), patience_s), 16):
        heard.body += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)


Ask = Callable[..., Awaitable[Heard]]


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(pace_s=0.0001) as running:
        yield running


@pytest.fixture
def ask(sandbox: Sandbox) -> Ask:
    """Ask the model: a text or messages, with fields of the request and headers as wanted."""

    async def ask(
        said: str | list[dict[str, Any]], *, query: str = "", headers: dict[str, str] | None = None, silent: bool = False, **fields: Any
    ) -> Heard:
        messages = [{"role": "user", "content": said}] if isinstance(said, str) else said
        body = json.dumps({"model": "gpt-4o-mini", "messages": messages, **fields}).encode()
        sent = {"authorization": "Bearer key"} | (headers or {})
        return await talk(sandbox.port, "POST", f"/v1/chat/completions{query}", body, sent, SHORT_S if silent else PATIENCE_S)

    return ask


@pytest.fixture
def call(sandbox: Sandbox) -> Ask:
    """Call a tool by name with arguments."""

    async def call(
        name: str, arguments: Any = None, *, query: str = "", headers: dict[str, str] | None = None, silent: bool = False
    ) -> Heard:
        body = json.dumps(arguments).encode() if arguments is not None else b""
        method = "POST" if body else "GET"
        return await talk(sandbox.port, method, f"/tools/{name}{query}", body, headers or {}, SHORT_S if silent else PATIENCE_S)

    return call


@pytest.fixture
def fetch(sandbox: Sandbox) -> Ask:
    """Send any request."""

    async def fetch(method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Heard:
        return await talk(sandbox.port, method, target, body, headers or {})

    return fetch


@pytest.fixture
def orders() -> dict[str, Any]:
    return ORDERS
