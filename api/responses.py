"""JSON responses: times end in Z, money is text, and rows are encoded once, without a model in between."""

from __future__ import annotations

import json
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from starlette.responses import Response


def _default(value: object) -> str:
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Decimal):
        text = f"{value:f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    raise TypeError(f"a {type(value).__name__} cannot be encoded as JSON")


_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_default)


def encode_json(value: object) -> str:
    """Return `value` as JSON."""
    return _encoder.encode(value)


class Json(Response):
    """A JSON response. It takes rows as they come from the database; no model is built from them."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return encode_json(content).encode()


def etag(version: int) -> str:
    """Return the strong entity tag of a version."""
    return f'"{version}"'


def accepted_versions(if_match: str | None) -> frozenset[int] | None:
    """Return the versions that an If-Match header accepts; None accepts any. Weak and malformed tags match nothing."""
    if if_match is None or if_match.strip() == "*":
        return None
    tags = (tag.strip() for tag in if_match.split(","))
    return frozenset(
        int(tag[1:-1]) for tag in tags if len(tag) < 12 and tag[:1] == tag[-1:] == '"' and tag[1:-1].isascii() and tag[1:-1].isdigit()
    )
