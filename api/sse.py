"""Renders a followed session as server-sent events, and ends streams whose client is slow or may no longer read."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing
from typing import Any

from fastapi import Response
from starlette.types import Receive, Scope, Send

from api.responses import encode_json
from engine.errors import NotFound
from realtime import event_reader
from realtime.event_reader import EventsRead, Idle
from realtime.messages import Delta

log = logging.getLogger(__name__)

CHUNK_BYTES = 64 * 1024  # about; SEND_TIMEOUT_S starts again with each chunk
KEEPALIVE_S = 15.0
RECHECK_KEY_S = 5.0
SEND_TIMEOUT_S = 30.0

# Many clients take these for line ends, although the protocol does not.
_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}


class EventStream(Response):
    """An endless response. It ends with its chunks, when the client leaves, or when the client takes nothing for `SEND_TIMEOUT_S`."""

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncGenerator[bytes]) -> None:
        super().__init__(None, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send chunks until the stream ends or the client leaves."""
        sending = asyncio.create_task(self._send(send))
        leaving = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, leaving):
                task.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)
        if sending.done() and not sending.cancelled() and (error := sending.exception()):
            raise error

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async with aclosing(self._chunks):  # so that its subscription ends now and not when it is collected
                async for chunk in self._chunks:
                    async with asyncio.timeout(SEND_TIMEOUT_S):
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except TimeoutError:
            log.info("Ending a stream: its client took nothing for %.0f s", SEND_TIMEOUT_S)
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def render(followed: AsyncGenerator[EventsRead | Delta | Idle], may_read: Callable[[], Awaitable[bool]]) -> AsyncGenerator[bytes]:
    """Yield the bytes of the stream, until `followed` ends or `may_read`, asked every `RECHECK_KEY_S`, returns False.

    The stream stays open while the database is unavailable: a browser that reconnected to a 503 would not try again.
    """
    clock = asyncio.get_running_loop().time
    sent_at = checked_at = clock()
    yield b"retry: 1000\n\n"
    try:
        async with aclosing(followed):
            async for item in followed:
                if isinstance(item, Idle):
                    if clock() >= checked_at + RECHECK_KEY_S:
                        checked_at = clock()
                        if not await may_read():
                            return
                    if clock() < sent_at + KEEPALIVE_S - event_reader.LOOK_EVERY_S:
                        continue
                for chunk in _rendered(item):
                    yield chunk
                sent_at = clock()
    except NotFound:
        return  # the session was deleted; the client reconnects and gets a 404


def _rendered(item: EventsRead | Delta | Idle) -> Iterable[bytes]:
    match item:
        case EventsRead(events):
            return _in_chunks(_frame("event", event, event["offset"]) for event in events)
        case Delta(turn_id, attempt, text):
            return (_frame("delta", {"turn_id": turn_id, "attempt": attempt, "text": text}),)
        case Idle():
            return (b": still here\n\n",)


def _in_chunks(frames: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the frames joined to chunks of about CHUNK_BYTES."""
    chunk = b""
    for frame in frames:
        chunk += frame
        if len(chunk) >= CHUNK_BYTES:
            yield chunk
            chunk = b""
    if chunk:
        yield chunk


def _frame(name: str, data: dict[str, Any], offset: int | None = None) -> bytes:
    identity = "" if offset is None else f"id: {offset}\n"
    # A delta may end within a surrogate pair, which UTF-8 cannot encode and JSON can.
    return f"{identity}event: {name}\ndata: {encode_json(data).translate(_LINE_ENDS)}\n\n".encode("utf-8", "backslashreplace")
