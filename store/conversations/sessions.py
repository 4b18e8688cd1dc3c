"""Sessions as the API shows them. Only `intake.py` and `turns.py` write their turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Row, cast, func, select, update
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.errors import Conflict, NotFound, Rejected
from engine.safe_json import check_json_value
from models import AgentRow, SessionRow, UserRow
from store import pagination

SCORES = range(1, 6)
REASON_MAX_LENGTH = 2000

_OWN = (
    SessionRow.id,
    SessionRow.agent_id,
    SessionRow.user_id,
    SessionRow.customer_id,
    SessionRow.mode,
    SessionRow.status,
    SessionRow.title,
    SessionRow.meta.label("metadata"),
    SessionRow.variables,
    SessionRow.tags,
    SessionRow.session_type,
    SessionRow.locale,
    SessionRow.timezone,
    SessionRow.event_count,
    SessionRow.message_count,
    SessionRow.tokens_used,
    SessionRow.input_tokens,
    SessionRow.cached_input_tokens,
    SessionRow.cache_write_tokens,
    SessionRow.output_tokens,
    SessionRow.reasoning_tokens,
    SessionRow.cost_usd,
    SessionRow.unpriced_calls,
    SessionRow.unknown_calls,
    SessionRow.started_at,
    SessionRow.last_activity_at,
    SessionRow.ended_at,
    SessionRow.satisfaction_score,
    SessionRow.quarantined_at,
    SessionRow.held_at,
    SessionRow.held_by,
    SessionRow.hold_reason,
    SessionRow.created_at,
    SessionRow.updated_at,
)
_AGENT: tuple[ColumnElement[Any], ...] = (
    AgentRow.name.label("agent_name"),
    AgentRow.model_provider.label("agent_model_provider"),
    AgentRow.model_name.label("agent_model_name"),
)
WIRE = (*_OWN, *_AGENT)


async def create(db: AsyncConnection, workspace_id: UUID, values: Mapping[str, Any]) -> dict[str, Any]:
    """Create a session with the agent `values["agent_id"]` and return it.

    Raises:
        NotFound: the workspace has no such agent.
        Conflict: the agent is not active.
        Rejected: the user is not in the workspace.
    """
    status = await db.scalar(select(AgentRow.status).where(AgentRow.id == values["agent_id"], AgentRow.deleted_at.is_(None)))
    if status is None:
        raise NotFound("Agent not found or inactive")
    if status != "active":
        raise Conflict("Agent not found or inactive")
    user_id = values.get("user_id")
    if user_id is not None and await db.scalar(select(UserRow.id).where(UserRow.id == user_id)) is None:
        raise Rejected("user_id is not a user of this workspace.")
    columns = {"meta" if name == "metadata" else name: value for name, value in values.items()}
    session_id = await db.scalar(insert(SessionRow).values(workspace_id=workspace_id, **columns).returning(SessionRow.id))
    assert session_id is not None  # noqa: S101 - RETURNING of an insert that did not raise
    return await get(db, session_id)


async def get(db: AsyncConnection, session_id: UUID) -> dict[str, Any]:
    """Return the session with its counters and its agent's name and model. Raises NotFound."""
    row = (await db.execute(_joined().where(SessionRow.id == session_id))).mappings().one_or_none()
    if row is None:
        raise NotFound("no such session")
    return _wire(row)


async def exists(db: AsyncConnection, session_id: UUID) -> bool:
    """Return whether the workspace has this session."""
    return await db.scalar(select(SessionRow.id).where(SessionRow.id == session_id)) is not None


async def page(
    db: AsyncConnection,
    *,
    agent_id: UUID | None = None,
    customer_id: str | None = None,
    status: str | None = None,
    quarantined: bool | None = None,
    limit: int = 20,
    after: str | None = None,
    total: bool = False,
) -> pagination.Page:
    """Return a page of the workspace's sessions, the newest first."""
    query = _joined()
    if agent_id is not None:
        query = query.where(SessionRow.agent_id == agent_id)
    if customer_id is not None:
        query = query.where(SessionRow.customer_id == customer_id)
    if status is not None:
        query = query.where(SessionRow.status == status)
    if quarantined is not None:
        query = query.where(SessionRow.quarantined_at.is_not(None) if quarantined else SessionRow.quarantined_at.is_(None))
    found = await pagination.read(db, query, SessionRow, limit=limit, after=after, total=total)
    return pagination.Page([_wire(item) for item in found.items], found.next_cursor, found.total_count)


async def end(db: AsyncConnection, session_id: UUID, reason: str | None = None) -> dict[str, Any]:
    """Complete the session and return it; `reason` is stored in its metadata as `end_reason`. A session that has ended is unchanged.

    An open turn goes on to its outcome; no new message is accepted.

    Raises:
        NotFound: the workspace has no such session.
    """
    values: dict[str, Any] = {"status": "completed", "ended_at": func.now()}
    if reason is not None:
        values["meta"] = SessionRow.meta.op("||")(cast({"end_reason": reason}, JSONB))
    await db.execute(update(SessionRow).where(SessionRow.id == session_id, SessionRow.status == "active").values(values))
    return await get(db, session_id)


async def rate(db: AsyncConnection, session_id: UUID, score: int | None) -> dict[str, Any]:
    """Store the customer's satisfaction, one of `SCORES` or None for unknown, and return the session.

    Raises:
        NotFound: the workspace has no such session.
        Rejected: the score is not one of `SCORES`.
    """
    if score is not None and score not in SCORES:
        raise Rejected(f"score is a whole number from {SCORES[0]} to {SCORES[-1]}.")
    rated = update(SessionRow).where(SessionRow.id == session_id, SessionRow.satisfaction_score.is_distinct_from(score))
    await db.execute(rated.values(satisfaction_score=score, updated_at=func.now()))
    return await get(db, session_id)


async def hold(db: AsyncConnection, session_id: UUID, reason: str | None, *, by: str) -> dict[str, Any]:
    """Put a legal hold on the session, so that it is not deleted, and return it. A held session gets the new reason, if any.

    Raises:
        NotFound: the workspace has no such session.
        Rejected: the reason is too long or not storable.
    """
    check_json_value(reason, "reason")
    if reason is not None and len(reason) > REASON_MAX_LENGTH:
        raise Rejected(f"reason is longer than {REASON_MAX_LENGTH} characters.")
    now, kept = func.now(), SessionRow.held_at
    values = {"held_at": func.coalesce(kept, now), "held_by": by, "hold_reason": func.coalesce(reason, SessionRow.hold_reason)}
    changed = update(SessionRow).where(SessionRow.id == session_id).values(values | {"updated_at": now})
    await db.execute(changed if reason is not None else changed.where(kept.is_(None)))
    return await get(db, session_id)


async def unhold(db: AsyncConnection, session_id: UUID) -> dict[str, Any]:
    """Lift a session's legal hold and return it. It is deleted when its retention is over. Raises NotFound."""
    values = {"held_at": None, "held_by": None, "hold_reason": None, "updated_at": func.now()}
    await db.execute(update(SessionRow).where(SessionRow.id == session_id, SessionRow.held_at.is_not(None)).values(values))
    return await get(db, session_id)


def _joined() -> Any:
    return select(*WIRE).join(AgentRow, AgentRow.id == SessionRow.agent_id)


def _wire(row: Mapping[Any, Any] | Row[Any]) -> dict[str, Any]:
    session = dict(row)
    session["agent"] = {
        "id": session["agent_id"],
        "name": session.pop("agent_name"),
        "model_provider": session.pop("agent_model_provider"),
        "model_name": session.pop("agent_model_name"),
    }
    return session
