"""Repair: giving a turn that ended without a reply another go, and letting a quarantined session go on."""

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
    "cancelled": "the turn was cancelled; somebody did not want it answered",
    "answered_later": "a later turn of the session has answered since, or is about to; its reply would come after that one's",
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


async def redrive(database: Database, workspace_id: UUID, turn_id: UUID, *, from_scratch: bool, by: str, window: int) -> Redriven:
    """Open a failed or dead turn again, with all its attempts and limits, and lift its session's quarantine.

    It goes on from its last step: finished model calls and tool calls stand. With `from_scratch` it begins at its messages again,
    with the agent as it is now, and what it had done is out of the model's sight. `by` is named in the log. `window`: how many turns
    of the workspace may be rung or running at a time.

    Raises:
        NotFound: no such turn in this workspace.
        Conflict: it cannot be redriven; the sentence says why.
    """
    row = await database.call(REDRIVE, workspace_id, turn_id, from_scratch, by, window)
    outcome = row["o_outcome"]
    if outcome == "redriven":
        return Redriven(row["o_session"], row["o_offset"], row["o_dispatch"])
    if outcome in REFUSED:
        raise Conflict(REFUSED[outcome])
    raise NotFound("no such turn")


async def release(database: Database, workspace_id: UUID, session_id: UUID, *, by: str, window: int) -> Released:
    """Lift a session's quarantine: its open turns are carried again; dead ones stay dead. Harmless to repeat. Raises NotFound."""
    row = await database.call(RELEASE, workspace_id, session_id, by, window)
    if row["o_outcome"] == "not_found":
        raise NotFound("no such session")
    return Released(row["o_offset"], row["o_dispatch"])
