"""Budgets: caps on what model calls may use, and what has been spent and is held of them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import Date, case, cast, delete, func, null, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.enums import BudgetPeriod, BudgetScope, BudgetUnit
from engine.errors import Conflict, NotFound, Rejected
from models import AgentRow, BudgetRow, SessionRow
from store import pagination

MAX_CAP = Decimal(10) ** 10  # exclusive; ten digits on either side of the point

TODAY = cast(func.timezone("UTC", func.now()), Date)
BEGUN = (BudgetRow.period == "day") & (BudgetRow.day < TODAY)  # a day nothing was reserved on yet
WIRE = (
    BudgetRow.id,
    BudgetRow.scope,
    BudgetRow.scope_id,
    BudgetRow.unit,
    BudgetRow.period,
    BudgetRow.cap,
    case((BEGUN, 0), else_=BudgetRow.spent).label("spent"),
    case((BEGUN, 0), else_=BudgetRow.reserved).label("reserved"),
    case((BudgetRow.period == "day", func.greatest(BudgetRow.day, TODAY)), else_=null()).label("day"),
    BudgetRow.created_at,
    BudgetRow.updated_at,
)


async def create(
    db: AsyncConnection,
    workspace_id: UUID,
    *,
    scope: BudgetScope,
    scope_id: UUID | None,
    unit: BudgetUnit,
    period: BudgetPeriod,
    cap: Decimal,
) -> dict[str, Any]:
    """Create a budget of US dollars or tokens, a day (UTC) or in all, and return it. It counts model calls from now on.

    `scope_id` may be left out for the workspace itself.

    Raises:
        Rejected: the cap is no amount of its unit; an agent or session is not named.
        NotFound: what the budget is to be of is not in this workspace.
        Conflict: there is one of this scope, unit and period already.
    """
    _check(unit, cap)
    scope_id = await _scope_id(db, workspace_id, scope, scope_id)
    values = {"workspace_id": workspace_id, "scope": scope, "scope_id": scope_id, "unit": unit, "period": period, "cap": cap}
    made = await db.scalar(insert(BudgetRow).values(values).on_conflict_do_nothing().returning(BudgetRow.id))
    if made is None:
        raise Conflict(f"there is a budget of this {scope} with this unit and period already")
    return await get(db, made)


async def get(db: AsyncConnection, budget_id: UUID) -> dict[str, Any]:
    """The budget as it stands. Raises NotFound."""
    row = (await db.execute(select(*WIRE).where(BudgetRow.id == budget_id))).mappings().one_or_none()
    if row is None:
        raise NotFound("no such budget")
    return dict(row)


async def page(
    db: AsyncConnection,
    *,
    scope: BudgetScope | None = None,
    scope_id: UUID | None = None,
    limit: int = 20,
    after: str | None = None,
    total: bool = False,
) -> pagination.Page:
    """The workspace's budgets, the newest first."""
    query = select(*WIRE)
    if scope is not None:
        query = query.where(BudgetRow.scope == scope)
    if scope_id is not None:
        query = query.where(BudgetRow.scope_id == scope_id)
    return await pagination.read(db, query, BudgetRow, limit=limit, after=after, total=total)


async def change(db: AsyncConnection, budget_id: UUID, cap: Decimal) -> dict[str, Any]:
    """Set another cap, from the next model call on, and return the budget. One below what is spent lets nothing more be called.

    Raises:
        NotFound: no such budget.
        Rejected: the cap is no amount of its unit.
    """
    _check((await get(db, budget_id))["unit"], cap)
    await db.execute(update(BudgetRow).where(BudgetRow.id == budget_id).values(cap=cap, updated_at=func.now()))
    return await get(db, budget_id)


async def remove(db: AsyncConnection, budget_id: UUID) -> None:
    """Remove the budget and what is held of it; model calls under way go on. Raises NotFound."""
    gone = await db.execute(delete(BudgetRow).where(BudgetRow.id == budget_id))
    if not gone.rowcount:
        raise NotFound("no such budget")


def _check(unit: BudgetUnit, cap: Decimal) -> None:
    if not cap.is_finite() or not 0 <= cap < MAX_CAP or cap.as_tuple().exponent < -10:  # type: ignore[operator]  # an int where finite
        raise Rejected("cap must be an amount from 0 to 9999999999 with at most ten digits after the point.")
    if unit == "tokens" and cap != cap.to_integral_value():
        raise Rejected("cap must be a whole number of tokens.")


async def _scope_id(db: AsyncConnection, workspace_id: UUID, scope: BudgetScope, scope_id: UUID | None) -> UUID:
    if scope == "workspace":
        if scope_id not in (None, workspace_id):
            raise NotFound("no such workspace")
        return workspace_id
    if scope_id is None:
        raise Rejected(f"scope_id is required: the {scope} that the budget is of.")
    there = (
        select(AgentRow.id).where(AgentRow.id == scope_id, AgentRow.deleted_at.is_(None))
        if scope == "agent"
        else select(SessionRow.id).where(SessionRow.id == scope_id)
    )
    if await db.scalar(there) is None:
        raise NotFound(f"no such {scope}")
    return scope_id
