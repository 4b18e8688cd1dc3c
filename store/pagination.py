"""Keyset pagination, the newest first. Pages neither skip nor repeat a row while rows are added."""

from __future__ import annotations

import base64
import binascii
import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.errors import Rejected

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_POSITION = struct.Struct(">q16s")  # microseconds since 1970, id


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a list. `next_cursor` is None on the last page; `total_count` is None unless it was requested."""

    items: list[dict[str, Any]]
    next_cursor: str | None
    total_count: int | None = None


async def read(
    db: AsyncConnection, query: Any, row: Any, *, limit: int, after: str | None = None, total: bool = False, at: str = "created_at"
) -> Page:
    """Return one page of the select `query`, whose columns include the time `at` and the `id` of the table `row`.

    `after` is the `next_cursor` of the page before. `total` counts the whole list, which is slow.

    Raises:
        Rejected: `after` is not a cursor of this list.
    """
    time = getattr(row, at)
    position = tuple_(time, row.id)
    total_count = await db.scalar(select(func.count()).select_from(query.order_by(None).subquery())) if total else None
    if after is not None:
        query = query.where(position < tuple_(*_position_of(after)))
    found = (await db.execute(query.order_by(time.desc(), row.id.desc()).limit(limit + 1))).mappings().all()
    items = [dict(item) for item in found[:limit]]
    return Page(items, _cursor(items[-1][at], items[-1]["id"]) if len(found) > limit else None, total_count)


def _cursor(time: datetime, row_id: UUID) -> str:
    micros = (time - _EPOCH) // timedelta(microseconds=1)
    return base64.urlsafe_b64encode(_POSITION.pack(micros, row_id.bytes)).decode()


def _position_of(cursor: str) -> tuple[datetime, UUID]:
    try:
        micros, raw = _POSITION.unpack(base64.b64decode(cursor.encode("ascii"), altchars=b"-_", validate=True))
        return _EPOCH + timedelta(microseconds=micros), UUID(bytes=raw)
    except (ValueError, binascii.Error, struct.error, OverflowError):
        raise Rejected("What was sent as `after` is not a cursor of this list; send the next_cursor of a page as it was.") from None
