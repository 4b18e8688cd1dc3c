"""HTTP/1.1 over one connection: read requests, play the scripts that answer them.

No framework, because the sandbox must break the protocol: resets, half bodies, wrong lengths, one header per second. It is also
fast: a request takes 0.1 ms. Only well-behaved clients on loopback connect to it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote

from sandbox.replies import End, Reply, Script, error_reply, script

MAX_HEAD_BYTES = 64 * 1024
MAX_BODY_BYTES = 32 * 1024 * 1024
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(slots=True)
class Request:
    """One complete request. Header names are lower case; `path` is decoded and without the query."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    keep_alive: bool


class Malformed(Exception):
    """An invalid request; `reply` is the error response."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.reply: Reply = error_reply(status, message)


@dataclass(slots=True)
class RequestBuffer:
    """Received bytes, from which complete requests are taken."""

    buffer: bytearray = field(default_factory=bytearray)
    wanted: int = 0

    def take(self) -> Request | None:
        """Return the next request, or None until it is complete.

        Raises:
            Malformed: not HTTP, or too large.
        """
        if len(self.buffer) < self.wanted:
            return None
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0 or end > MAX_HEAD_BYTES:
            if len(self.buffer) > MAX_HEAD_BYTES:
                raise Malformed(431, "The headers are too large.")
            return None
        method, target, version, headers = _read_head(self.buffer[:end].decode("latin-1"))
        taken = self._body(end + 4, headers)
        if taken is None:
            return None
        body, after = taken
        del self.buffer[:after]
        self.wanted = 0
        path, _, query = target.partition("?")
        connection = headers.get("connection", "").lower()
        keep_alive = connection != "close" if version == "HTTP/1.1" else connection == "keep-alive"
        pairs = dict(parse_qsl(query, keep_blank_values=True)) if query else {}
        return Request(method, unquote(path), pairs, headers, body, keep_alive)

    def _body(self, start: int, headers: dict[str, str]) -> tuple[bytes, int] | None:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return _read_chunked(self.buffer, start)
        text = headers.get("content-length", "0")
        if not (text.isascii() and text.isdigit()):
            raise Malformed(400, "content-length is not a number.")
        after = start + int(text[:12])
        if after - start > MAX_BODY_BYTES:
            raise Malformed(413, "The body is too large.")
        if len(self.buffer) < after:
            self.wanted = after
            return None
        return bytes(self.buffer[start:after]), after


def _read_head(text: str) -> tuple[str, str, str, dict[str, str]]:
    first, *lines = text.split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise Malformed(400, "The first line is not an HTTP/1 request line.")
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise Malformed(400, "A header has no colon.")
        headers[name.lower()] = value.strip()
    return words[0], words[1], words[2], headers


def _read_chunked(buffer: bytearray, at: int) -> tuple[bytes, int] | None:
    body = bytearray()
    while True:
        line_end = buffer.find(b"\r\n", at)
        if line_end < 0:
            return None
        try:
            size = int(buffer[at:line_end].split(b";")[0], 16)
        except ValueError:
            raise Malformed(400, "A chunk has no size.") from None
        if size < 0 or len(body) + size > MAX_BODY_BYTES:
            raise Malformed(413, "The body is too large.")
        at = line_end + 2
        if len(buffer) < at + size + 2:
            return None
        if size == 0:
            return bytes(body), at + 2
        body += buffer[at : at + size]
        at += size + 2


class Connection(asyncio.Protocol):
    """Answers one client's requests in order, each with the script that `answer` returns for it."""

    def __init__(self, answer: Callable[[Request], Script], connections: set[Connection]) -> None:
        self._answer = answer
        self._connections = connections
        self._received = RequestBuffer()
        self._script: Script | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._keep_alive = True
        self._buffer_full = False
        self._paused = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register the connection."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the current script, because the client disconnected."""
        self._connections.discard(self)
        self._transport = None
        self._stop()

    def data_received(self, data: bytes) -> None:
        """Store received bytes; a pipelined request waits until the previous one is answered."""
        self._received.buffer += data
        if self._script is None:
            self._next()
        elif len(self._received.buffer) > MAX_BODY_BYTES and self._transport is not None:
            self._transport.abort()

    def pause_writing(self) -> None:
        """Pause the script while the client reads slowly."""
        self._buffer_full = True

    def resume_writing(self) -> None:
        """Resume a paused script."""
        self._buffer_full = False
        if self._paused:
            self._paused = False
            self._resume()

    def abort(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def _next(self) -> None:
        while self._script is None and self._received.buffer and self._transport is not None:
            try:
                request = self._received.take()
            except Malformed as problem:
                self._keep_alive = False
                self._script = script(problem.reply)
            else:
                if request is None:
                    return
                self._keep_alive = request.keep_alive
                self._script = self._answer(request)
            self._play()

    def _play(self) -> None:
        transport, steps = self._transport, self._script
        while transport is not None and steps is not None:
            if self._buffer_full:
                self._paused = True
                return
            step = next(steps, End.CLOSE if not self._keep_alive else None)
            if isinstance(step, bytes):
                transport.write(step)
            elif isinstance(step, float):
                self._timer = asyncio.get_running_loop().call_later(step, self._resume)
                return
            elif step is None:
                self._script = None
                return
            else:
                self._end(transport, step)
                return

    def _resume(self) -> None:
        self._timer = None
        self._play()
        if self._script is None:
            self._next()

    def _end(self, transport: asyncio.Transport, end: End) -> None:
        if end is End.RESET:
            sock: socket.socket = transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            transport.abort()
        elif end is End.CLOSE:
            transport.close()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._script is not None:
            close = getattr(self._script, "close", None)
            if close is not None:
                close()
