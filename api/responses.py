"""Values as they go on the wire: JSON whose times end in Z and whose money is text."""

from __future__ import annotations

import json
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from starlette.responses import Response


def _plain(value: object) -> str:
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Decimal):
        text = f"{value:f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    raise TypeError(f"{type(value).__name__} has no place on the wire")


_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain)


def text_of(value: object) -> str:
    """`value` as JSON."""
    return _encoder.encode(value)


class Json(Response):
    """A JSON answer, encoded once: rows come from the database as they go out, so no model is built from them."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The body's bytes."""
        return text_of(content).encode()


def etag(version: int) -> str:
    """The strong entity tag of a version."""
    return f'"{version}"'


def versions(if_match: str | None) -> frozenset[int] | None:
    """The versions an If-Match header accepts, or None where it accepts any. Weak tags and foreign ones match nothing."""
    if if_match is None or if_match.strip() == "*":
        return None
    tags = (tag.strip() for tag in if_match.split(","))
    return frozenset(
        int(tag[1:-1]) for tag in tags if len(tag) < 12 and tag[:1] == tag[-1:] == '"' and tag[1:-1].isascii() and tag[1:-1].isdigit()
    )
