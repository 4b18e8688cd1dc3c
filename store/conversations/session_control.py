"""Cancelling turns, switching a session's mode, and replying as a person."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from psycopg.types.json import Jsonb

from engine.enums import SessionMode, Source
from engine.errors import Conflict, NotFound, Rejected
from store.conversations.intake import Accepted, check_message
from store.database import Database

CANCEL = "SELECT * FROM cancel_turns($1, $2, $3, $4)"
SET_MODE = "SELECT * FROM set_mode($1, $2, $3, $4, $5)"
REPLY = "SELECT * FROM reply_as_person($1, $2, $3, $4, $5, $6)"

MODES = tuple(SessionMode)
PEOPLE = (Source.HUMAN_AGENT, Source.HUMAN_AGENT_ON_BEHALF_OF_AI_AGENT)


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The result of a request to cancel. `to_dispatch` is the turn to dispatch now, if any; `offset` is the log's last.

    `status`: cancelled, all that was open has ended; cancelling, a worker has a turn and ends it within a second; settled, nothing
    was open.
    """

    status: Literal["cancelled", "cancelling", "settled"]
    session_id: UUID
    offset: int
    to_dispatch: UUID | None


@dataclass(frozen=True, slots=True)
class Switched:
    """The result of switching a mode. `offset` is the log's last, or None if the mode was the same before."""

    offset: int | None
    to_dispatch: UUID | None


async def cancel_session(database: Database, workspace_id: UUID, session_id: UUID, *, by: str) -> Cancelled:
    """Cancel every open turn of a session. Safe to repeat. Raises NotFound."""
    return _cancelled(await database.call(CANCEL, workspace_id, session_id, None, by), "no such session")


async def cancel_turn(database: Database, workspace_id: UUID, turn_id: UUID, *, by: str) -> Cancelled:
    """Cancel a turn if it is open; other turns of its session go on. Safe to repeat. Raises NotFound."""
    return _cancelled(await database.call(CANCEL, workspace_id, None, turn_id, by), "no such turn")


def _cancelled(row: dict[str, Any], missing: str) -> Cancelled:
    if row["o_outcome"] == "not_found":
        raise NotFound(missing)
    return Cancelled(row["o_outcome"], row["o_session"], row["o_offset"], row["o_dispatch"])


async def set_mode(database: Database, workspace_id: UUID, session_id: UUID, mode: str, *, by: str, in_flight_limit: int = 200) -> Switched:
    """Switch who answers: the agent (auto), a person (manual, which ends open turns) or nobody (paused, which parks them). Safe to repeat.

    Once this has returned for manual, the log gets no agent message until the mode is auto again. `in_flight_limit` is how many turns of
    the workspace may be admitted.

    Raises:
        Rejected: `mode` is not a mode.
        NotFound: the workspace has no such session.
        Conflict: the session has ended.
    """
    if mode not in MODES:
        raise Rejected(f"mode must be one of {', '.join(MODES)}.")
    row = await database.call(SET_MODE, workspace_id, session_id, mode, by, in_flight_limit)
    match row["o_outcome"]:
        case "switched" | "unchanged":
            return Switched(row["o_offset"], row["o_dispatch"])
        case "session_ended":
            raise Conflict("the session has ended; its mode stays as it is")
        case _:
            raise NotFound("no such session")


async def reply_as_person(
    database: Database,
    workspace_id: UUID,
    session_id: UUID,
    source: str,
    text: str,
    *,
    message_key: str | None = None,
    metadata: dict[str, Any] | None = None,
) -> Accepted:
    """Append a person's message, as themselves or on the agent's behalf, in any mode. It opens no turn and cancels none.

    Safe to repeat with the same `message_key`.

    Raises:
        Rejected: the text, key or metadata is not valid; `source` is not a person.
        NotFound: the workspace has no such session.
        Conflict: the key was used for another message; the session has ended.
    """
    check_message(text, message_key, metadata)
    if source not in PEOPLE:
        raise Rejected(f"source must be one of {', '.join(PEOPLE)}.")
    row = await database.call(REPLY, workspace_id, session_id, source, Jsonb({"text": text}), Jsonb(metadata or {}), message_key)
    match row["o_outcome"]:
        case "accepted" | "repeated":
            repeated = row["o_outcome"] == "repeated"
            return Accepted(row["o_event_id"], row["o_offset"], row["o_created_at"], None, None, repeated, None)
        case "conflict":
            raise Conflict("message_key was used before in this session, for another message")
        case "session_ended":
            raise Conflict("the session has ended; start a new one")
        case _:
            raise NotFound("no such session")
