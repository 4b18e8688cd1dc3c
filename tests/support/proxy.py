"""A TCP relay on loopback that simulates faults of networks and servers, and counts them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Self, TypeVar
from urllib.parse import urlsplit, urlunsplit

from cli.standalone.process_utils import LOOPBACK

T = TypeVar("T")
_CHUNK = 64 * 1024
_RST_ON_CLOSE = struct.pack("ii", 1, 0)


class Mode(Enum):
    """The current treatment of bytes and new connections."""

    PASS = "pass"
    STALL = "stall"
    BLACK_HOLE = "black hole"
    REFUSE = "refuse"


@dataclass
class Counts:
    """The numbers of connections, bytes and faults so far."""

    accepted: int = 0
    passed_bytes: int = 0
    held_bytes: int = 0
    swallowed_bytes: int = 0
    lost_replies: int = 0
    cut: int = 0
    unreachable: int = 0

    def __sub__(self, earlier: Counts) -> Counts:
        return Counts(**{name: value - getattr(earlier, name) for name, value in vars(self).items()})


class _Link:
    """One client's connection, and the proxy's connection to the server."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.writers = [client]
        self.loses_next_reply = self.has_hole = self.is_over = False
        self.task = asyncio.current_task()

    def reset(self) -> None:
        """Reset both connections at once."""
        self.close()
        if self.task is not None:
            self.task.cancel()

    def close(self) -> None:
        """Close both sides: in order if both had sent the end of their stream, else with an RST."""
        for writer in self.writers:
            if self.is_over:
                writer.close()
                continue
            with contextlib.suppress(OSError):  # the socket may be gone already
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE)
            writer.transport.abort()


class Proxy:
    """Relays `port` to `target` on loopback; both ports stay the same through all faults.

    Every method may be called from any thread, and its effect is complete when it returns. A new proxy passes everything.
    """

    def __init__(self, target: int) -> None:
        self.target, self.port = target, 0
        self.mode = Mode.PASS
        self._counts = Counts()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None
        self._holder = socket.socket()  # bound and never listening: keeps the port while connections are refused
        self._flowing = asyncio.Event()

    def __enter__(self) -> Self:
        self._holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._holder.bind((LOOPBACK, 0))
        self.port = self._holder.getsockname()[1]
        self._thread.start()
        self.heal()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._holder.close()

    @property
    def counts(self) -> Counts:
        """Return a copy of the counts, to subtract from a later one."""
        return self._do(lambda: replace(self._counts))

    @property
    def connections(self) -> int:
        """Return the number of open connections."""
        return self._do(lambda: len(self._links))

    def stall(self) -> None:
        """Delay every byte, both ways, until healed. No connection ends, and new ones are accepted."""
        self._do(lambda: self._switch(Mode.STALL))

    def black_hole(self) -> None:
        """Accept and swallow everything until healed; connections that lost bytes are then reset."""
        self._do(lambda: self._switch(Mode.BLACK_HOLE))

    def refuse(self) -> None:
        """Refuse new connections until healed. Open ones stay open."""
        self._do(lambda: self._switch(Mode.REFUSE))

    def cut(self) -> int:
        """Reset every connection; return their number."""
        return self._do(self._cut)

    def take_down(self) -> None:
        """Refuse new connections and reset the open ones until healed, as if the server's machine had rebooted."""
        self.refuse()
        self.cut()

    def url(self, server_url: str) -> str:
        """Return `server_url` with its port replaced by the proxy's, so that its client connects through the proxy."""
        parts = urlsplit(server_url)
        return urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.port}", f":{self.port}")))

    def lose_replies(self) -> int:
        """Make each connection that is open now drop its server's next bytes and be reset: the server has done the request, and the
        client gets no reply. Return the number of these connections; new ones are not affected."""
        return self._do(self._arm)

    def heal(self) -> None:
        """Pass everything again."""
        self._do(lambda: self._switch(Mode.PASS))

    def _do(self, action: Callable[[], T]) -> T:
        async def act() -> T:
            result = action()
            if self.mode is not Mode.REFUSE and self._server is None:
                self._server = await asyncio.start_server(self._accept, sock=self._listener())
            return result

        return asyncio.run_coroutine_threadsafe(act(), self._loop).result(10)

    def _listener(self) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((LOOPBACK, self.port))
        return listener

    def _switch(self, mode: Mode) -> None:
        self.mode = mode
        if mode is Mode.STALL:
            self._flowing.clear()
        else:
            self._flowing.set()
        if mode is Mode.REFUSE and self._server is not None:
            self._server.close()
            self._server = None
        for link in list(self._links):
            link.loses_next_reply = False
            if link.has_hole and mode is not Mode.BLACK_HOLE:
                link.reset()

    def _cut(self) -> int:
        cut = [link for link in self._links if not link.is_over]
        for link in cut:
            link.reset()
        self._counts.cut += len(cut)
        return len(cut)

    def _arm(self) -> int:
        for link in self._links:
            link.loses_next_reply = True
        return len(self._links)

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        tasks = [link.task for link in self._links if link.task is not None]
        for link in list(self._links):
            link.reset()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._counts.accepted += 1
        link = _Link(writer)
        self._links.add(link)
        with contextlib.suppress(asyncio.CancelledError, OSError, ExceptionGroup):  # if either side ends in any way, close both
            await self._relay(link, reader, writer)
        self._links.discard(link)
        link.close()

    async def _relay(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mode is Mode.BLACK_HOLE:
            link.has_hole = True
            while data := await reader.read(_CHUNK):
                self._counts.swallowed_bytes += len(data)
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(LOOPBACK, self.target)
        except OSError:
            self._counts.unreachable += 1
            return
        link.writers.append(far_writer)
        async with asyncio.TaskGroup() as pumps:
            pumps.create_task(self._pump(link, reader, far_writer, replies=False))
            pumps.create_task(self._pump(link, far_reader, writer, replies=True))
        link.is_over = True

    async def _pump(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool) -> None:
        while True:
            try:
                data = await reader.read(_CHUNK)
            except OSError:
                await self._flowing.wait()  # while stalled, the end of the stream is not relayed either
                raise
            if self.mode is Mode.STALL:
                self._counts.held_bytes += len(data)
                await self._flowing.wait()
            if not data:
                writer.write_eof()
                return
            if self.mode is Mode.BLACK_HOLE:
                link.has_hole = True
                self._counts.swallowed_bytes += len(data)
            elif replies and link.loses_next_reply:
                self._counts.lost_replies += 1
                self._counts.swallowed_bytes += len(data)
                link.reset()
                return
            else:
                self._counts.passed_bytes += len(data)
                writer.write(data)
                await writer.drain()
