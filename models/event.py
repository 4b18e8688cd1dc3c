"""Events."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKeyConstraint, Index, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, CreatedAt, JsonObject


class EventRow(Base):
    """One line of a session's log: written once, never updated. The application's role has no right to change or delete it.

    `fence` is the fence of the claim that wrote the event; in a session it never decreases from one offset to the next. A customer's
    message has the session's fence at that moment and the turn that it was accepted into.
    """

    __tablename__ = "events"
    session_id: Mapped[UUID] = mapped_column(primary_key=True)
    offset: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    id: Mapped[UUID] = mapped_column(server_default=text("uuidv7()"))
    workspace_id: Mapped[UUID]
    kind: Mapped[str]  # text without a check: a new kind needs no migration
    source: Mapped[str]
    content: Mapped[dict[str, Any]] = mapped_column(JSONB)  # shape, by kind: docs/reference.md
    meta: Mapped[JsonObject] = mapped_column("metadata")
    turn_id: Mapped[UUID | None]
    tool_call_id: Mapped[str | None]
    message_key: Mapped[str | None]
    fence: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    created_at: Mapped[CreatedAt]

    __table_args__ = (
        ForeignKeyConstraint(["workspace_id", "session_id"], ["sessions.workspace_id", "sessions.id"]),
        Index(
            "uq_events_session_id_message_key", "session_id", "message_key", unique=True, postgresql_where=text("message_key IS NOT NULL")
        ),
    )
