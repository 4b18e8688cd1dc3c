"""What is sent back: a reply as a value, and the script of bytes and waits that carries it out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from typing import Any


class End(Enum):
    """How a script may end, other than by having sent a whole reply."""

    RESET = "the peer gets an RST"
    CLOSE = "the connection is closed in good order, whatever was promised"
    HANG = "nothing more is sent until the peer leaves"


Step = bytes | float | End
"""Bytes to send, seconds to wait, or an end. A script of them is played by `sandbox.connection`."""

Script = Iterator[Step]

EVENT_STREAM = "text/event-stream; charset=utf-8"
to_json = json.JSONEncoder(separators=(",", ":")).encode
REASONS = {int(status): status.phrase for status in HTTPStatus}


@dataclass(slots=True)
class Reply:
    """A reply before it is sent. With `pieces` it is a stream: one HTTP chunk a piece, `gap_s` seconds between them."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    pieces: list[bytes] | None = None
    gap_s: float = 0.0

    def payload(self) -> bytes:
        """Return the body as the client should see it, a stream's pieces joined."""
        return self.body if self.pieces is None else b"".join(self.pieces)


def head(reply: Reply, *, length: int | None, extra: str = "") -> bytes:
    """Return the status line and headers; a `length` of None announces a chunked body."""
    size = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    lines = "".join([f"{name}: {value}\r\n" for name, value in reply.headers])
    reason = REASONS.get(reply.status, "Unknown")
    return f"HTTP/1.1 {reply.status} {reason}\r\ncontent-type: {reply.content_type}\r\n{lines}{extra}{size}\r\n\r\n".encode("latin-1")


def frame(piece: bytes) -> bytes:
    """Return one chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)


LAST_FRAME = b"0\r\n\r\n"


def script(reply: Reply) -> Script:
    """Yield the steps that send `reply` as it should be sent."""
    if reply.pieces is None:
        yield head(reply, length=len(reply.body)) + reply.body
    elif not reply.gap_s:
        yield b"".join([head(reply, length=None), *map(frame, reply.pieces), LAST_FRAME])
    else:
        yield head(reply, length=None)
        for number, piece in enumerate(reply.pieces):
            if number:
                yield reply.gap_s
            yield frame(piece)
        yield LAST_FRAME


def json_reply(document: Any, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Reply:
    """Return `document` as a JSON reply."""
    return Reply(status, to_json(document).encode(), headers=headers)


def error_reply(
    status: int,
    message: str,
    *,
    kind: str = "invalid_request_error",
    code: str | None = None,
    param: str | None = None,
    headers: tuple[tuple[str, str], ...] = (),
) -> Reply:
    """Return an error in the vendor's shape."""
    return json_reply({"error": {"message": message, "type": kind, "param": param, "code": code}}, status, headers)
