"""Faults in the transport of a response: error statuses, resets, half, slow and oversized bodies."""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

from sandbox.replies import LAST_FRAME, End, Reply, Script, error_reply, frame, head, script

OVERSIZED_BYTES = 10 * 1024 * 1024
BOMB_BYTES = 64 * 1024 * 1024
SLOW_HEADERS = 60
BEFORE_RESET_S = 0.05  # an RST can overtake data that was sent just before it
PIECE_BYTES = 64 * 1024
HTML = b"<!DOCTYPE html>\n<html><head><title>Welcome</title></head><body><h1>It works!</h1></body></html>\n"
GATEWAY = b"<html>\n<head><title>502 Bad Gateway</title></head>\n<body><center><h1>502 Bad Gateway</h1></center></body>\n</html>\n"

BEFORE_WORK = frozenset({"hang", "reset"})
"""Faults after which, as after an error status, nothing was executed."""

AFTER_WORK = frozenset({"execute-then-drop", "effect-then-500", "effect-then-timeout"})
"""Faults that hide from the client that the request was executed."""


def error_status(fault: str) -> Reply | None:
    """Return the reply if `fault` is an error status or a redirect, else None."""
    make = _ERROR_STATUSES.get(fault)
    return None if make is None else make()


def _rate_limited(retry_after: str | None = None) -> Reply:
    headers = () if retry_after is None else (("retry-after", retry_after),)
    return error_reply(429, "Rate limit reached for requests.", kind="requests", code="rate_limit_exceeded", headers=headers)


_ERROR_STATUSES: dict[str, Callable[[], Reply]] = {
    "429": _rate_limited,
    "429-retry-after": lambda: _rate_limited("1"),
    "429-retry-after-long": lambda: _rate_limited("86400"),
    "429-retry-date": lambda: _rate_limited(format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)),
    "429-retry-garbage": lambda: _rate_limited("soon"),
    "500": lambda: error_reply(500, "The server had an error while processing the request.", kind="server_error"),
    "502": lambda: Reply(502, GATEWAY, "text/html"),
    "503": lambda: error_reply(503, "The engine is overloaded, try again later.", kind="service_unavailable_error"),
    "529": lambda: error_reply(529, "Overloaded.", kind="overloaded_error"),
    "401": lambda: error_reply(401, "The API key was revoked.", code="invalid_api_key"),
    "403": lambda: error_reply(403, "The API key may not use this model.", kind="permission_error", code="permission_denied"),
    "400-context": lambda: error_reply(
        400, "This model's maximum context length is exceeded.", param="messages", code="context_length_exceeded"
    ),
    "redirect-metadata": lambda: Reply(302, b"", "text/plain", (("location", "http://169.254.169.254/"),)),
    "effect-then-500": lambda: error_reply(500, "The server had an error after it had done the work.", kind="server_error"),
}


def faulty_script(fault: str, reply: Reply, *, pace_s: float) -> Script:
    """Return the script that sends `reply` with the transport fault `fault`, or normally if it is another kind of fault.

    `pace_s` is the time between two bytes, or two headers, of a slow response.
    """
    match fault:
        case "hang" | "effect-then-timeout":
            return iter((End.HANG,))
        case "reset" | "execute-then-drop":
            return iter((End.RESET,))
        case "hang-mid-body":
            return iter((_half(reply), End.HANG))
        case "reset-mid-body":
            return iter((_half(reply), BEFORE_RESET_S, End.RESET))
        case "slow-headers":
            return _slow_headers(reply, pace_s)
        case "slow-body":
            return _slow_body(reply, pace_s)
        case "wrong-length":
            payload = reply.payload()
            return iter((head(reply, length=len(payload) + 100) + payload, End.CLOSE))
        case "html":
            return script(Reply(200, HTML, "text/html; charset=utf-8", reply.headers))
        case "wrong-charset":
            return script(Reply(200, reply.payload().decode().encode("utf-16"), reply.content_type, reply.headers))
        case "oversized":
            return _oversized(reply)
        case "gzip-bomb":
            return script(Reply(200, _gzip_bomb(), reply.content_type, (*reply.headers, ("content-encoding", "gzip"))))
    return script(reply)


def _half(reply: Reply) -> bytes:
    if reply.pieces is None:
        return head(reply, length=len(reply.body)) + reply.body[: len(reply.body) // 2]
    half = reply.pieces[: max(1, len(reply.pieces) // 2)]
    return b"".join([head(reply, length=None), *map(frame, half)])


def _slow_headers(reply: Reply, pace_s: float) -> Script:
    payload = reply.payload()
    lines = head(reply, length=len(payload)).split(b"\r\n", 1)
    yield lines[0] + b"\r\n"
    for number in range(SLOW_HEADERS):
        yield pace_s
        yield b"x-slow-%d: still here\r\n" % number
    yield pace_s
    yield lines[1] + payload


def _slow_body(reply: Reply, pace_s: float) -> Script:
    payload = reply.payload()
    yield head(reply, length=len(payload))
    for place in range(len(payload)):
        yield pace_s
        yield payload[place : place + 1]


def _oversized(reply: Reply) -> Script:
    """Yield a body of 10 MB that is otherwise valid: one long string, or many events."""
    yield head(reply, length=None)
    piece = b"a" * PIECE_BYTES
    if reply.pieces is not None:
        event = b'data: {"choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}\n\n' % piece
        for _ in range(OVERSIZED_BYTES // PIECE_BYTES):
            yield frame(event)
    else:
        before, after = _split_at_content(reply)
        yield frame(before)
        for _ in range(OVERSIZED_BYTES // PIECE_BYTES):
            yield frame(piece)
        yield frame(after)
    yield LAST_FRAME


def _split_at_content(reply: Reply) -> tuple[bytes, bytes]:
    """Return the reply's document in two parts; any letters between them leave it valid JSON."""
    mark = "THE-LONG-STRING"
    document = json.loads(reply.body)
    if "choices" in document:
        document["choices"][0]["message"]["content"] = mark
    else:
        document["padding"] = mark
    before, _, after = json.dumps(document).encode().partition(mark.encode())
    return before, after


@functools.cache
def _gzip_bomb() -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = [packer.compress(b'{"choices":[],"padding":"')]
    zeros = b"0" * (1024 * 1024)
    packed += [packer.compress(zeros) for _ in range(BOMB_BYTES // len(zeros))]
    return b"".join([*packed, packer.compress(b'"}'), packer.flush()])
