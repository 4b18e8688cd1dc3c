"""Approvals: what waits for a person, and what they decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from psycopg.types.json import Jsonb
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.errors import Conflict, NotFound, Rejected
from engine.safe_json import check_json_value
from engine.tools.json_schema import validate
from engine.turn.tool_intents import hash_to_approve
from models import ApprovalRow, SessionRow
from store import pagination
from store.database import Database, dumps

EDITED_MAX_BYTES = 64 * 1024
REASON_MAX_LENGTH = 2000

DECIDE = "SELECT * FROM decide_approval($1, $2, $3, $4, $5, $6, $7)"
WIRE = (
    ApprovalRow.id,
    ApprovalRow.session_id,
    ApprovalRow.turn_id,
    ApprovalRow.tool_call_id,
    ApprovalRow.tool_id,
    ApprovalRow.tool_name,
    ApprovalRow.arguments,
    ApprovalRow.status,
    ApprovalRow.requested_at,
    ApprovalRow.expires_at,
    ApprovalRow.decided_by,
    ApprovalRow.decided_at,
    ApprovalRow.reason,
    ApprovalRow.edited_arguments,
    ApprovalRow.used_at,
)
# The tool's parameters as the turn was pinned to them: what the call is checked by when it is run.
PARAMETERS = text(
    "SELECT jsonb_path_query_first(k.snapshot, '$.tools[*] ? (@.id == $id)', jsonb_build_object('id', p.tool_id))->'parameters'"
    " FROM approvals p JOIN turns t ON t.id = p.turn_id JOIN sessions s ON s.id = p.session_id"
    " JOIN agent_snapshots k ON k.agent_id = s.agent_id AND k.digest = t.agent_digest WHERE p.id = :id"
)

Verdict = Literal["approved", "denied"]


class Unfit(Rejected):
    """Edited arguments that the tool does not take. `failures` are sentences with their places."""

    def __init__(self, failures: Sequence[str]) -> None:
        super().__init__(f"The edited arguments do not fit the tool's parameters: {failures[0]}")
        self.failures = tuple(failures)


@dataclass(frozen=True, slots=True)
class Decided:
    """A decision that is in the log at `offset`. `to_dispatch`: the turn that goes on, if it may."""

    approval: dict[str, Any]
    offset: int
    to_dispatch: UUID | None


async def get(db: AsyncConnection, approval_id: UUID) -> dict[str, Any]:
    """The approval. Raises NotFound."""
    row = (await db.execute(select(*WIRE).where(ApprovalRow.id == approval_id))).mappings().one_or_none()
    if row is None:
        raise NotFound("no such approval")
    return dict(row)


async def page(
    db: AsyncConnection,
    *,
    status: str | None = None,
    session_id: UUID | None = None,
    agent_id: UUID | None = None,
    limit: int = 20,
    after: str | None = None,
    total: bool = False,
) -> pagination.Page:
    """The workspace's approvals, the newest first."""
    query = select(*WIRE)
    if status is not None:
        query = query.where(ApprovalRow.status == status)
    if session_id is not None:
        query = query.where(ApprovalRow.session_id == session_id)
    if agent_id is not None:
        query = query.join(SessionRow, SessionRow.id == ApprovalRow.session_id).where(SessionRow.agent_id == agent_id)
    return await pagination.read(db, query, ApprovalRow, limit=limit, after=after, total=total, at="requested_at")


async def decide(
    database: Database,
    workspace_id: UUID,
    approval_id: UUID,
    verdict: Verdict,
    *,
    by: str,
    reason: str | None = None,
    edited_arguments: dict[str, Any] | None = None,
) -> Decided:
    """Decide for `by`, once: the decision is good for this call with the arguments that were shown, or those given in their place.

    Raises:
        NotFound: no such approval in this workspace.
        Conflict: it was decided before, has expired, or its turn is over.
        Rejected: the reason or the edited arguments cannot be kept, or there are some with a denial. Unfit: the tool does not take them.
    """
    _check(verdict, reason, edited_arguments)
    async with database.transaction(workspace_id) as db:
        asked = await get(db, approval_id)
        if edited_arguments is not None:
            parameters = await db.scalar(PARAMETERS, {"id": approval_id})
            if failures := ["The agent has no such tool."] if parameters is None else validate(parameters, edited_arguments):
                raise Unfit(failures)
    given = asked["arguments"] if edited_arguments is None else edited_arguments
    # Bound to what was shown, not to what was to be run: where the two differ, nothing is run.
    bound = hash_to_approve(asked["session_id"], asked["tool_id"], asked["tool_call_id"], asked["tool_name"], given)
    edited = None if edited_arguments is None else Jsonb(edited_arguments)
    row = await database.call(DECIDE, workspace_id, approval_id, verdict, by, reason, edited, bound)
    async with database.transaction(workspace_id) as db:
        approval = await get(db, approval_id)
    match row["o_outcome"]:
        case "decided":
            return Decided(approval, row["o_offset"], row["o_dispatch"])
        case "expired":
            raise Conflict(f"it expired at {approval['expires_at']:%Y-%m-%d %H:%M:%S} UTC")
        case "over":
            raise Conflict("its turn is over")
        case _:
            decided = f"{approval['decided_at']:%Y-%m-%d %H:%M:%S} UTC"
            raise Conflict(f"it was {approval['status']} before, by {approval['decided_by']} at {decided}")


def _check(verdict: Verdict, reason: str | None, edited_arguments: dict[str, Any] | None) -> None:
    check_json_value(reason, "reason")
    if reason is not None and len(reason) > REASON_MAX_LENGTH:
        raise Rejected(f"reason is longer than {REASON_MAX_LENGTH} characters.")
    if edited_arguments is None:
        return
    if verdict != "approved":
        raise Rejected("edited_arguments can be sent with an approval only.")
    check_json_value(edited_arguments, "edited_arguments")
    if len(dumps(edited_arguments).encode()) > EDITED_MAX_BYTES:
        raise Rejected(f"edited_arguments are longer than {EDITED_MAX_BYTES} bytes.")
