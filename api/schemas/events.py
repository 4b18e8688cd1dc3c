"""Events of a session's log."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from api.schemas.common import ResponseBody
from engine.enums import EventKind, Source


class Event(ResponseBody):
    """An immutable event of a session's log. The shape of `content` depends on `kind`."""

    id: UUID
    session_id: UUID
    offset: int
    kind: EventKind
    source: Source
    content: dict[str, Any]
    metadata: dict[str, Any]
    turn_id: UUID | None
    created_at: datetime


class Events(ResponseBody):
    """Events by offset. `next_after` is the offset of the last one, or the `after` of the request if there is none."""

    events: list[Event]
    next_after: int
