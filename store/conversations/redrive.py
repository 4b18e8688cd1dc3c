"""Redriving turns that ended without a reply, and releasing quarantined sessions."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from engine.errors import Conflict, NotFound
from store.database import Database

REDRIVE = "SELECT * FROM redrive_turn($1, $2, $3, $4, $5)"
RELEASE = "SELECT * FROM release_session($1, $2, $3, $4)"

REFUSED = {
    "not_ended": "the turn is still open; only one that has failed or is dead is redriven",
    "answered": "the turn was answered",
    "cancelled": "the turn was cancelled on request",
    "answered_later": "a later turn of the session has answered or is running; a reply to this one would come out of order",
    "unsafe_ran": "a tool that must not be repeated has run, or may have; redrive it from its last step instead of from scratch",
    "session_ended": "the session has ended",
    "manual": "a person answers in this session; set its mode to auto first",
}


@dataclass(frozen=True, slots=True)
class Redriven:
    """A turn that is open again. `offset` is the log's last; `to_dispatch` is the turn of the session to dispatch now, if any."""

    session_id: UUID
    offset: int
    to_dispatch: UUID | None


@dataclass(frozen=True, slots=True)
class Released:
    """A session that is not quarantined. `offset` is the log's last, or None if it was not quarantined before."""

    offset: int | None
    to_dispatch: UUID | None


async def redrive(database: Database, workspace_id: UUID, turn_id: UUID, *, from_scratch: bool, by: str, in_flight_limit: int) -> Redriven:
    """Open a failed or dead turn again, with full attempts and limits, and lift its session's quarantine.

    It resumes at its last step: finished model calls and tool calls stand. With `from_scratch` it starts at its messages again, with
    the agent as it is now, and the model does not see what it did before. `by` is named in the log. `in_flight_limit` is the workspace's
    in-flight limit.

    Raises:
        NotFound: the workspace has no such turn.
        Conflict: the turn cannot be redriven; the message says why.
    """
    row = await database.call(REDRIVE, workspace_id, turn_id, from_scratch, by, in_flight_limit)
    outcome = row["o_outcome"]
    if outcome == "redriven":
        return Redriven(row["o_session"], row["o_offset"], row["o_dispatch"])
    if outcome in REFUSED:
        raise Conflict(REFUSED[outcome])
    raise NotFound("no such turn")


async def release(database: Database, workspace_id: UUID, session_id: UUID, *, by: str, in_flight_limit: int) -> Released:
    """Lift a session's quarantine, so that its open turns run again. Dead turns stay dead. Safe to repeat. Raises NotFound."""
    row = await database.call(RELEASE, workspace_id, session_id, by, in_flight_limit)
    if row["o_outcome"] == "not_found":
        raise NotFound("no such session")
    return Released(row["o_offset"], row["o_dispatch"])
