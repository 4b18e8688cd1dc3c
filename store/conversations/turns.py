"""Claiming a turn, writing it, renewing its lease. `turn_codec` turns the rows into the engine's values and back."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb
from psycopg_pool import PoolTimeout

from engine.errors import LeaseLost
from engine.turn.commit import CommitResult, Finish, Reserved, TurnCommit
from engine.turn.context import Limits
from failpoints import failpoint
from store.conversations.turn_codec import Secrets, decode_context, decode_result, decode_resume_point, encode_commit
from store.database import Database

log = logging.getLogger(__name__)

CLAIM = "SELECT * FROM claim_turn($1, $2, $3, $4, $5)"
WRITE = "SELECT * FROM write_turn($1, $2, $3, $4, $5, $6)"
RENEW = "SELECT * FROM renew_leases($1, $2, $3)"
CANCEL_REASONS = "SELECT session_id, reason FROM cancel_reasons($1)"
LEASE_LOST = "TL001"

# If a connection breaks in the middle of a call, nobody knows whether the call was committed. Both calls may be sent again, because each
# recognises itself: claim_turn by its owner, write_turn by its number.
BROKEN = (psycopg.OperationalError, PoolTimeout)
# Deadlocks, lock timeouts, broken connections, a full or stopping server: these pass. Another error is a bug.
PASSING = ("40", "55", "57", "08", "53")


@dataclass(frozen=True, slots=True)
class NotClaimed:
    """A turn that was not claimed.

    `why`: settled, busy, early, paused, quarantined, not_next, no_turn, dead. `next_turn`: a turn to dispatch instead, if any.
    """

    why: str
    next_turn: UUID | None = None


class Claim:
    """The right to write one turn, and its inputs. The fence proves the right with every write."""

    def __init__(
        self, database: Database, turn_id: UUID, owner: str, row: Mapping[str, Any], *, limits: Limits, secrets: Secrets, approval_s: float
    ) -> None:
        self.database = database
        self.approval_s = approval_s
        self.turn_id = turn_id
        self.owner = owner
        self.workspace_id: UUID = row["o_workspace"]
        self.session_id: UUID = row["o_session"]
        self.fence: int = row["o_fence"]
        self.attempts: int = row["o_attempts"]
        self.last_offset = -1
        self.next_turn: UUID | None = None
        self.context = decode_context(turn_id, row, limits, secrets)
        self.on_commit: Callable[[TurnCommit, CommitResult, float], None] | None = None  # (commit, result, seconds it took)
        self.resume_point = decode_resume_point(row)
        self.outstanding: Reserved | None = self.resume_point.reserved  # the model call that has a ledger row and no result
        self._writes: int = row["o_writes"]

    async def write(self, commit: TurnCommit) -> CommitResult:
        """Write `commit`. It is sent again while the connection breaks, and written once.

        Raises:
            LeaseLost: another claim holds the session; nothing was written.
            psycopg.Error: the database refuses it, or was away for too long.
        """
        began = time.perf_counter()
        payload = Jsonb(encode_commit(commit, self.approval_s))
        _before_write(commit)
        row = await _with_retries(
            lambda: self.database.call(
                WRITE, self.workspace_id, self.session_id, self.turn_id, self.fence, self._writes, payload, share=self.workspace_id
            )
        )
        _after_write(commit)
        self._writes += 1
        self.last_offset = row["o_last_offset"]
        self.next_turn = row["o_next_turn"]
        if commit.reserve is not None:
            begun = commit.reserve.again or (row["o_cancel_reason"] is None and row["o_budget_refusal"] is None)
            self.outstanding = commit.reserve.call if begun else None
        elif commit.model_call is not None:
            self.outstanding = None
        result = decode_result(row, commit.outcome)
        if self.on_commit is not None:
            self.on_commit(commit, result, time.perf_counter() - began)
        return result


async def claim(
    database: Database,
    turn_id: UUID,
    owner: str,
    *,
    lease_s: float,
    max_attempts: int,
    history_limit: int,
    limits: Limits,
    secrets: Secrets,
    approval_s: float = 86_400.0,
) -> Claim | NotClaimed:
    """Claim a turn for `owner`, a name that only this execution uses: lease, fence and turn context, in one transaction.

    `history_limit` is how many of the session's latest events the turn context is read from. A turn that was claimed `max_attempts` times
    without an outcome ends here as dead. Approvals that the turn requests expire after `approval_s` seconds.
    """
    row = await _with_retries(lambda: database.call(CLAIM, turn_id, owner, lease_s, max_attempts, history_limit))
    if row["o_outcome"] != "claimed":
        return NotClaimed(row["o_outcome"], row["o_next_turn"])
    failpoint("turn.claimed")
    return Claim(database, turn_id, owner, row, limits=limits, secrets=secrets, approval_s=approval_s)


async def renew(database: Database, held: Mapping[UUID, int], *, lease_s: float) -> set[UUID]:
    """Renew a process's leases (`held`: fence by session) in one statement, and return the sessions that it still holds."""
    rows = await database.rows(RENEW, list(held), list(held.values()), lease_s)
    return {row["renew_leases"] for row in rows}


async def stops(database: Database, sessions: Collection[UUID]) -> dict[UUID, str]:
    """Return, by session, the reason why its running turn is to be cancelled; sessions without one are left out."""
    return {row["session_id"]: row["reason"] for row in await database.rows(CANCEL_REASONS, list(sessions))}


async def _with_retries(send: Callable[[], Any], *, tries: int = 6) -> dict[str, Any]:
    """Return the row that `send` returns; send again, for about 10 s in all, while the connection breaks.

    Raises LeaseLost for a stale fence.
    """
    for left in range(tries - 1, -1, -1):
        try:
            row: dict[str, Any] = await send()
            return row
        except psycopg.Error as error:
            if error.sqlstate == LEASE_LOST:
                raise LeaseLost(str(error)) from None
            if not left or not (isinstance(error, BROKEN) or (error.sqlstate or "").startswith(PASSING)):
                raise
            log.warning("database call failed, sending it again: %s", type(error).__name__)
        except PoolTimeout:
            if not left:
                raise
        await asyncio.sleep(random.uniform(0.1, 0.2) * 2 ** (tries - left - 1))  # noqa: S311 - jitter
    raise AssertionError("unreachable")


def _before_write(commit: TurnCommit) -> None:
    failpoint("write.before_send")
    if isinstance(commit.outcome, Finish):
        failpoint("turn.before_final_commit")


def _after_write(commit: TurnCommit) -> None:
    failpoint("write.committed")
    if isinstance(commit.outcome, Finish):
        failpoint("turn.final_commit")
    elif commit.tool_results:
        failpoint("tool_call.committed")
    elif commit.model_call is not None:
        failpoint("model_call.committed")
