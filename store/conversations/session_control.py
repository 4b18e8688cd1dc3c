"""What people do to a session while it runs: cancelling its turns, switching who answers, writing themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from psycopg.types.json import Jsonb

from engine.errors import Conflict, NotFound, Rejected
from store.conversations.intake import Accepted, check_message
from store.database import Database

CANCEL = "SELECT * FROM cancel_turns($1, $2, $3, $4)"
SET_MODE = "SELECT * FROM set_mode($1, $2, $3, $4, $5)"
SAY = "SELECT * FROM reply_as_person($1, $2, $3, $4, $5, $6)"

MODES = ("auto", "manual", "paused")
PEOPLE = ("human_agent", "human_agent_on_behalf_of_ai_agent")


@dataclass(frozen=True, slots=True)
class Cancelled:
    """What became of a request to cancel. `to_dispatch`: the turn to be carried next, if any; `offset`: where the session's log ends.

    cancelled: what was open has ended. cancelling: a worker carries a turn, and will end it within a second. settled: nothing was open.
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
    """Cancel every open turn of a session. Harmless to repeat. Raises NotFound."""
    return _cancelled(await database.call(CANCEL, workspace_id, session_id, None, by), "no such session")


async def cancel_turn(database: Database, workspace_id: UUID, turn_id: UUID, *, by: str) -> Cancelled:
    """Cancel a turn, if it is open; the others of its session go on. Harmless to repeat. Raises NotFound."""
    return _cancelled(await database.call(CANCEL, workspace_id, None, turn_id, by), "no such turn")


def _cancelled(row: dict[str, Any], missing: str) -> Cancelled:
    if row["o_outcome"] == "not_found":
        raise NotFound(missing)
    return Cancelled(row["o_outcome"], row["o_session"], row["o_offset"], row["o_dispatch"])


async def set_mode(database: Database, workspace_id: UUID, session_id: UUID, mode: str, *, by: str, window: int = 200) -> Switched:
    """Switch who answers: the agent (auto), a person (manual: open turns end), nobody for now (paused: turns rest). Harmless to repeat.

    Once this has returned for manual, no message of the agent follows in the log until the mode is auto again. `window`: how many turns of
    the workspace may be rung or running at a time.

    Raises:
        Rejected: no such mode.
        NotFound: no such session in this workspace.
        Conflict: the session has ended.
    """
    if mode not in MODES:
        raise Rejected(f"mode must be one of {', '.join(MODES)}.")
    row = await database.call(SET_MODE, workspace_id, session_id, mode, by, window)
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
    """Append a person's message, as themselves or on the agent's behalf, whatever the mode. It opens no turn and stops none.

    Safe to repeat with the same `message_key`.

    Raises:
        Rejected: the text, key or metadata is not what a message's must be; `source` is no person.
        NotFound: no such session in this workspace.
        Conflict: the key was used for another message; the session has ended.
    """
    check_message(text, message_key, metadata)
    if source not in PEOPLE:
        raise Rejected(f"source must be one of {', '.join(PEOPLE)}.")
    row = await database.call(SAY, workspace_id, session_id, source, Jsonb({"text": text}), Jsonb(metadata or {}), message_key)
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
