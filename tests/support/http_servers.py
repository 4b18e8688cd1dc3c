"""Small raw servers for protocol corner cases that a well-behaved HTTP server cannot produce."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Request:
    """One request as it was received."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Handler = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Server:
    """The requests and connections that a server got. `closed` is set whenever a client's connection ends."""

    port: int = 0
    connections: int = 0
    requests: list[Request] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def serve(handler: Handler) -> AsyncIterator[Server]:
    """Serve `handler` on a free port of loopback. A handler that closes the writer ends the connection; else it is kept."""
    server = Server()
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        server.connections += 1
        try:
            while (request := await _read(reader)) is not None and not writer.is_closing():
                server.requests.append(request)
                server.arrived.set()
                watch = asyncio.create_task(_watch(reader, server))
                try:
                    await handler(request, writer)
                finally:
                    watch.cancel()
                    await asyncio.gather(watch, return_exceptions=True)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            server.gone.set()
            writer.transport.abort()
            tasks.discard(task)

    listener = await asyncio.start_server(connected, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _watch(reader: asyncio.StreamReader, server: Server) -> None:
    """Detect a client that disconnects before its answer is sent."""
    while not reader.at_eof() and reader.exception() is None:
        await asyncio.sleep(0.01)
    server.gone.set()


async def _read(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    start, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    method, target, _ = start.split(" ", 2)
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Request(method, target, headers, await reader.readexactly(int(headers.get("content-length", "0"))))


def response(
    body: bytes | str | dict[str, Any] | list[Any] = b"", status: int = 200, content_type: str = "application/json", **headers: str
) -> bytes:
    """Return the bytes of a whole, well-formed response; header names may be written with underscores."""
    raw = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    fields = {"content-type": content_type, "content-length": str(len(raw))} | {k.replace("_", "-"): v for k, v in headers.items()}
    head = f"HTTP/1.1 {status} X\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items()) + "\r\n"
    return head.encode() + raw


def answering(*answers: bytes) -> Handler:
    """Return a handler that gives these answers in turn, and then repeats the last one."""
    left = list(answers)

    async def handle(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(left.pop(0) if len(left) > 1 else left[0])
        await writer.drain()

    return handle


def chunked(parts: Iterable[bytes], end: bool = True, content_type: str = "text/event-stream", **headers: str) -> list[bytes]:
    """Return the pieces of a chunked response: its head, one piece for each part, and its end."""
    fields = {"content-type": content_type, "transfer-encoding": "chunked"} | {k.replace("_", "-"): v for k, v in headers.items()}
    head = "HTTP/1.1 200 OK\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items()) + "\r\n"
    pieces = [head.encode(), *(f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in parts)]
    return [*pieces, b"0\r\n\r\n"] if end else pieces


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN."""
    raw: socket.socket = writer.transport.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def never(_request: Request, _writer: asyncio.StreamWriter) -> None:
    """Accept the request and never answer."""
    await asyncio.sleep(3600)


def free_port() -> int:
    """Return a port of loopback on which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
