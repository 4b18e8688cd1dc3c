"""Limits on request bodies: their size while they are read, their depth and number of keys before they are parsed."""

from __future__ import annotations

import json
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request

from api.errors import Problem
from engine.errors import Rejected
from engine.safe_json import parse_client


class GuardedRequest(Request):
    """A request whose JSON body is counted while it arrives, and parsed once, after its nesting has been checked."""

    _raw: bytes | None = None
    _value: Any = None

    async def take(self, max_bytes: int) -> None:
        """Read and parse the body, if there is one.

        Raises:
            Problem: 413 too long, 415 another content type, 400 malformed JSON, 422 JSON that cannot be stored.
        """
        declared = self.headers.get("content-length", "")
        if declared.isascii() and declared.isdigit() and (len(declared) > 12 or int(declared) > max_bytes):
            raise _too_large(max_bytes)
        raw = bytearray()
        async for chunk in self.stream():
            raw += chunk
            if len(raw) > max_bytes:
                raise _too_large(max_bytes)
        self._raw = bytes(raw)
        if raw:
            if not _is_json(self.headers):
                raise Problem(415, "The body must be JSON, with Content-Type: application/json.")
            self._value = _parse(self._raw, max_bytes)

    async def body(self) -> bytes:
        """Return the bytes that `take` read."""
        return b"" if self._raw is None else self._raw

    async def json(self) -> Any:
        """Return the value that `take` parsed."""
        return self._value


def _too_large(max_bytes: int) -> Problem:
    return Problem(413, f"The body is longer than {max_bytes} bytes.")


def _is_json(headers: Headers) -> bool:
    kind, _, subtype = headers.get("content-type", "").partition(";")[0].strip().lower().partition("/")
    return kind == "application" and (subtype == "json" or subtype.endswith("+json"))


def _parse(raw: bytes, max_bytes: int) -> Any:
    try:
        return parse_client(raw, max_bytes=max_bytes)
    except Rejected as error:
        if not _well_formed(raw):
            raise Problem(400, str(error)) from None
        raise Problem(422, str(error), errors=[("body", str(error))]) from None


def _well_formed(raw: bytes) -> bool:
    """Return whether `raw` is JSON at all, even if it exceeds a limit."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    try:
        json.loads(raw, parse_constant=refuse, parse_int=str)
    except RecursionError:
        return True
    except ValueError:
        return False
    return True
