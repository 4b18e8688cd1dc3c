"""Reading a session's log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.sentences import with_sentences
from models import EventRow

WIRE = (
    EventRow.id,
    EventRow.session_id,
    EventRow.offset,
    EventRow.kind,
    EventRow.source,
    EventRow.content,
    EventRow.meta,
    EventRow.turn_id,
    EventRow.created_at,
)


async def after(
    db: AsyncConnection, session_id: UUID, offset: int = -1, *, kinds: Sequence[str] = (), limit: int = 100
) -> list[dict[str, Any]]:
    """Return the session's events above `offset` as the API sends them, ascending, at most `limit`; of `kinds` only, if any are given."""
    query = select(*WIRE).where(EventRow.session_id == session_id, EventRow.offset > offset).order_by(EventRow.offset).limit(limit)
    if kinds:
        query = query.where(EventRow.kind.in_(kinds))
    return [{**row, "content": with_sentences(row["content"])} for row in (await db.execute(query)).mappings()]
