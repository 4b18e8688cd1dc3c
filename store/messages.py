"""Intake: the one function behind both doors, HTTP and Celery."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from engine.errors import Conflict, NotFound
from store.database import Database

ACCEPT = "SELECT * FROM accept_message($1, $2, $3, $4, $5, $6)"


@dataclass(frozen=True, slots=True)
class Accepted:
    """A customer's message that is in the log. `turn_id` is None where a person answers (mode manual).

    `repeated`: its `message_key` had been accepted before; everything here is the first one's. `ring`: its turn wants ringing.
    """

    event_id: UUID
    offset: int
    created_at: datetime
    turn_id: UUID | None
    turn_status: str | None
    repeated: bool
    ring: bool


async def accept(
    database: Database,
    workspace_id: UUID,
    session_id: UUID,
    text: str,
    *,
    message_key: str | None = None,
    metadata: dict[str, Any] | None = None,
    strategy: str | None = None,
) -> Accepted:
    """Append a customer's message and open a turn for it, or join the open one; one transaction.

    Safe to repeat with the same `message_key`. `text` and `metadata` have been checked (`engine.sanitise`).

    Raises:
        NotFound: no such session in this workspace.
        Conflict: the key was used with another text; the session has ended; its agent does not answer any more.
    """
    row = await database.call(
        ACCEPT, workspace_id, session_id, Jsonb({"text": text}), Jsonb(metadata or {}), message_key, strategy
    )
    match row["o_outcome"]:
        case "accepted" | "repeated":
            return Accepted(
                event_id=row["o_event_id"],
                offset=row["o_offset"],
                created_at=row["o_created_at"],
                turn_id=row["o_turn_id"],
                turn_status=row["o_turn_status"],
                repeated=row["o_outcome"] == "repeated",
                ring=row["o_ring"],
            )
        case "conflict":
            raise Conflict("message_key was used before in this session, with another text")
        case "session_ended":
            raise Conflict("the session has ended; start a new one")
        case "agent_inactive":
            raise Conflict("the session's agent is not active")
        case _:
            raise NotFound("no such session")
