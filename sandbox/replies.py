"""HTTP responses as values, and the scripts of bytes and pauses that send them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from typing import Any


class End(Enum):
    """The ways a script may end without a complete reply."""

    RESET = "the client gets an RST"
    CLOSE = "the connection is closed normally, even if the body is incomplete"
    HANG = "nothing more is sent until the client disconnects"


Step = bytes | float | End
"""Bytes to send, seconds to wait, or an end. `sandbox.connection` plays scripts of these steps."""

Script = Iterator[Step]

EVENT_STREAM = "text/event-stream; charset=utf-8"
to_json = json.JSONEncoder(separators=(",", ":")).encode
REASONS = {int(status): status.phrase for status in HTTPStatus}


@dataclass(slots=True)
class Reply:
    """A response. With `pieces` it is a stream: one HTTP chunk per piece, `gap_s` seconds apart."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    pieces: list[bytes] | None = None
    gap_s: float = 0.0

    def payload(self) -> bytes:
        """Return the complete body; the pieces of a stream are joined."""
        return self.body if self.pieces is None else b"".join(self.pieces)


def head(reply: Reply, *, length: int | None, extra: str = "") -> bytes:
    """Return the status line and headers. If `length` is None, the body is chunked."""
    size = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    lines = "".join([f"{name}: {value}\r\n" for name, value in reply.headers])
    reason = REASONS.get(reply.status, "Unknown")
    return f"HTTP/1.1 {reply.status} {reason}\r\ncontent-type: {reply.content_type}\r\n{lines}{extra}{size}\r\n\r\n".encode("latin-1")


def frame(piece: bytes) -> bytes:
    """Return one chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)


LAST_FRAME = b"0\r\n\r\n"


def script(reply: Reply) -> Script:
    """Yield the steps that send `reply` correctly."""
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
    """Return an error response in OpenAI's format."""
    return json_reply({"error": {"message": message, "type": kind, "param": param, "code": code}}, status, headers)
