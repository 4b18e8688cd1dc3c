"""Accepting customers' messages, for the HTTP API and for the Celery task."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb
from sqlalchemy import text as sql

from engine.enums import Strategy
from engine.errors import Conflict, NotFound, Permanent, RateLimited, Rejected
from engine.safe_json import check_json_value
from store.database import Database, dumps

TEXT_MAX_BYTES = 64 * 1024
KEY_MAX_LENGTH = 200
METADATA_MAX_BYTES = 64 * 1024
RETRY_AFTER_S = 5.0  # when a turn may have settled
STRATEGIES = tuple(Strategy)

ACCEPT = "SELECT * FROM accept_message($1, $2, $3, $4, $5, $6, $7, $8)"


@dataclass(frozen=True, slots=True)
class Accepted:
    """A customer's message that is in the log. `turn_id` is None if a person answers (mode manual).

    `repeated`: its `message_key` was accepted before, and all fields are those of the first message. `to_dispatch`: the turn to dispatch
    now, if any.
    """

    event_id: UUID
    offset: int
    created_at: datetime
    turn_id: UUID | None
    turn_status: str | None
    repeated: bool
    to_dispatch: UUID | None


async def accept(
    database: Database,
    workspace_id: UUID,
    session_id: UUID,
    text: str,
    *,
    message_key: str | None = None,
    metadata: dict[str, Any] | None = None,
    strategy: str | None = None,
    in_flight_limit: int = 200,
    max_open: int | None = None,
) -> Accepted:
    """Append a customer's message and open a turn for it, or join the open turn, in one transaction.

    Safe to repeat with the same `message_key`. `in_flight_limit` is how many turns of the workspace may be admitted, `max_open` how many
    turns of the session may be open.

    Raises:
        Rejected: the text is blank, longer than 64 KiB or not storable; the key, metadata or strategy is not valid.
        NotFound: the workspace has no such session.
        Conflict: the key was used with another text; the session has ended; its agent is not active; a turn is open, and the strategy
            is reject, or is rollback and an unsafe tool has run.
        RateLimited: the session has `max_open` open turns.
    """
    check_message(text, message_key, metadata)
    if strategy is not None and strategy not in STRATEGIES:
        raise Rejected(f"strategy must be one of {', '.join(STRATEGIES)}.")
    content = Jsonb({"text": text})
    row = await database.call(
        ACCEPT,
        workspace_id,
        session_id,
        content,
        Jsonb(metadata or {}),
        message_key,
        strategy,
        in_flight_limit,
        max_open,
        share=workspace_id,
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
                to_dispatch=row["o_dispatch"],
            )
        case "conflict":
            raise Conflict("message_key was used before in this session, with another text")
        case "session_ended":
            raise Conflict("the session has ended; start a new one")
        case "busy":
            raise Conflict("a turn is under way, and the strategy is reject; send the message again when it has settled")
        case "unsafe_ran":
            raise Conflict("an unsafe tool has run in the turn under way, so it cannot be rolled back; interrupt it instead")
        case "too_many_open":
            raise RateLimited(
                f"the session has {max_open} open turns, which is as many as it may have; send the message again when one has settled",
                retry_after_s=RETRY_AFTER_S,
            )
        case "agent_inactive":
            raise Conflict("the session's agent is not active")
        case _:
            raise NotFound("no such session")


def check_message(text: object, message_key: object, metadata: object) -> None:
    """Raise Rejected unless the text, key and metadata are valid for a message."""
    check_text(text)
    if message_key is not None and not (isinstance(message_key, str) and 1 <= len(message_key) <= KEY_MAX_LENGTH):
        raise Rejected(f"message_key must be a string of 1 to {KEY_MAX_LENGTH} characters.")
    check_json_value(message_key, "message_key")
    if metadata is not None:
        if not isinstance(metadata, dict):
            raise Rejected("metadata must be an object.")
        check_json_value(metadata, "metadata")
        if len(dumps(metadata).encode()) > METADATA_MAX_BYTES:
            raise Rejected(f"metadata is longer than {METADATA_MAX_BYTES} bytes.")


def check_text(text: object) -> None:
    """Raise Rejected if `text` is not a message's text: blank, longer than 64 KiB, or not storable."""
    if not isinstance(text, str) or not text.strip():
        raise Rejected("text must be a string that is not blank.")
    check_json_value(text, "text")
    if len(text.encode()) > TEXT_MAX_BYTES:
        raise Rejected(f"text is longer than {TEXT_MAX_BYTES} bytes.")


async def record_refusal(
    database: Database, workspace_id: UUID, session_id: UUID, message_key: object, text: object, error: Permanent
) -> int | None:
    """Append a `status_update` that says why a message was not accepted, and return its offset; for senders that get no response.

    Return None if the session was deleted meanwhile. The same refusal of the same message is recorded once, however often the message
    is delivered. The event holds the message's key and never its text.
    """
    refusal = hashlib.sha256(f"{message_key}\0{text}".encode("utf-8", "surrogatepass")).hexdigest()
    key = message_key[:KEY_MAX_LENGTH] if isinstance(message_key, str) and _storable(message_key) else None
    async with database.transaction(workspace_id) as db:
        fence = await db.scalar(sql("SELECT lease_fence FROM sessions WHERE id = :id FOR NO KEY UPDATE"), {"id": session_id})
        if fence is None:
            return None
        known: int | None = await db.scalar(
            sql(
                'SELECT "offset" FROM events'
                " WHERE session_id = :id AND kind = 'status_update' AND metadata->>'refusal' = :refusal LIMIT 1"
            ),
            {"id": session_id, "refusal": refusal},
        )
        if known is not None:
            return known
        event = {
            "kind": "status_update",
            "source": "system",
            "content": {"status": "refused", "error_class": error.error_class, "text": str(error), "message_key": key},
            "metadata": {"refusal": refusal},
        }
        first: int = await db.scalar(
            sql("SELECT append_events(:workspace, :id, NULL, :fence, CAST(:events AS jsonb))"),
            {"workspace": workspace_id, "id": session_id, "fence": fence, "events": dumps([event])},
        )
        return first


def _storable(text: str) -> bool:
    try:
        check_json_value(text)
    except Rejected:
        return False
    return True
