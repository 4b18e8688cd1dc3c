"""The session's log as server-sent events: lines as they are written, and tokens as they stream."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from typing import Annotated, Any
from uuid import UUID

from fastapi import Header, Request, Response
from starlette.types import Receive, Scope, Send

from api.auth import bearer
from api.dependencies import AppState, AppStateDep, CallerDep, router
from api.errors import AWAY, Problem
from api.responses import text_of
from api.routes.events import MAX_OFFSET, After
from api.routes.reading import LOOK_EVERY_S, read
from engine.enums import EventKind
from engine.errors import NotFound
from realtime.messages import Delta
from store.catalog.workspaces import Caller

log = logging.getLogger(__name__)

PAGE = 100
CHUNK_BYTES = 64 * 1024  # about; a slow client has its patience anew for each
KEEPALIVE_S = 15.0
RECHECK_S = 5.0  # whether the key still opens the door
PATIENCE_S = 30.0  # for a client that takes nothing off its connection

# Line ends to many clients, though not to the protocol.
_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}

routes = router("sessions")
_DESCRIBED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "`event` events: a line of the log, its offset as id. `delta` events: a piece of the reply being generated, "
        "`{turn_id, attempt, text}`, without an id; pieces of a greater attempt void those of smaller ones. "
        "Comments keep the connection open.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


class EventStream(Response):
    """An endless answer. Ends when its events end, its client leaves, or has taken nothing for `PATIENCE_S`."""

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncGenerator[bytes]) -> None:
        super().__init__(None, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send chunks until one of the two sides has had enough."""
        sending = asyncio.create_task(self._send(send))
        leaving = asyncio.create_task(_left(receive))
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
            async with aclosing(self._chunks):  # its watch ends here, not whenever it is collected
                async for chunk in self._chunks:
                    async with asyncio.timeout(PATIENCE_S):
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except TimeoutError:
            log.info("a stream was ended: its client took nothing for %.0f s", PATIENCE_S)
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@routes.get("/sessions/{session_id}/stream", status_code=200, response_class=EventStream, responses=_DESCRIBED)
async def stream_events(
    request: Request,
    session_id: UUID,
    caller: CallerDep,
    app_state: AppStateDep,
    after: After = -1,
    last_event_id: Annotated[str | None, Header(max_length=20, description="As a browser sends it; wins over `after`.")] = None,
) -> Response:
    """Stream a session's log from behind an offset, and go on as it grows."""
    offset = after if last_event_id is None else _offset(last_event_id)
    await read(app_state, caller.workspace_id, session_id, offset, limit=1)  # 404 while it can still be said
    return EventStream(_chunks(app_state, caller, bearer(request), session_id, offset))


def _offset(last_event_id: str) -> int:
    digits = last_event_id.strip()
    if digits == "-1" or (digits.isascii() and digits.isdigit() and int(digits) <= MAX_OFFSET):
        return int(digits)
    what = "It is not an id of this stream: an offset, or -1."
    raise Problem(422, what, errors=[("header.last-event-id", what)])


async def _chunks(app_state: AppState, caller: Caller, key_text: str, session_id: UUID, offset: int) -> AsyncGenerator[bytes]:
    """The stream's bytes, until the server stops or the caller may not read any more.

    A database that is away is waited for: a browser that came back to a 503 would not come again.
    """
    clock = asyncio.get_running_loop().time
    spoke_at = recheck_at = clock()
    answered: UUID | None = None  # its last tokens may arrive behind its reply
    yield b"retry: 1000\n\n"
    async with app_state.subscriber.subscribe(session_id) as watch:
        while not app_state.stopping:
            try:
                found = await read(app_state, caller.workspace_id, session_id, offset, limit=PAGE)
            except NotFound:
                return  # the client comes back, and is told why it is refused
            except AWAY:
                found = []
            for event in found:
                if event["kind"] == EventKind.AGENT_MESSAGE:
                    answered = event["turn_id"]
            if found:
                offset = found[-1]["offset"]
                for chunk in _gathered(_frame("event", event, event["offset"]) for event in found):
                    yield chunk
                spoke_at = clock()
                if len(found) == PAGE:
                    continue
            if clock() >= recheck_at + RECHECK_S:
                recheck_at = clock()
                if not await _may_read(app_state, key_text):
                    return
            look_at = clock() + LOOK_EVERY_S
            while (left := look_at - clock()) > 0:
                piece = await watch.next(left)
                if not isinstance(piece, Delta):
                    break
                if piece.turn_id != answered:
                    yield _frame("delta", {"turn_id": piece.turn_id, "attempt": piece.attempt, "text": piece.text})
                    spoke_at = clock()
            if clock() >= spoke_at + KEEPALIVE_S - LOOK_EVERY_S:
                yield b": still here\n\n"
                spoke_at = clock()


def _gathered(frames: Iterable[bytes]) -> Iterator[bytes]:
    """The frames, small ones several at a time."""
    chunk = b""
    for frame in frames:
        chunk += frame
        if len(chunk) >= CHUNK_BYTES:
            yield chunk
            chunk = b""
    if chunk:
        yield chunk


async def _may_read(app_state: AppState, key_text: str) -> bool:
    try:
        known = await app_state.keys.caller(key_text)
    except AWAY:
        return True  # nothing can be read, and no key revoked
    return known is not None and known.may_read


def _frame(name: str, data: dict[str, Any], offset: int | None = None) -> bytes:
    identity = "" if offset is None else f"id: {offset}\n"
    # A piece of text may end within a surrogate pair, which UTF-8 cannot say and JSON can.
    return f"{identity}event: {name}\ndata: {text_of(data).translate(_LINE_ENDS)}\n\n".encode("utf-8", "backslashreplace")
