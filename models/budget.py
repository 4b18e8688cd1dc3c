"""Budgets, and the amounts that running model calls reserve of them."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from engine.enums import BudgetPeriod, BudgetScope, BudgetUnit
from models.base import Base, CreatedAt, Id, UpdatedAt, one_of


class BudgetRow(Base):
    """A cap on dollars or tokens, per day (UTC) or in total, for a workspace, agent or session. `spent + reserved` never exceeds `cap`."""

    __tablename__ = "budgets"
    id: Mapped[Id]
    workspace_id: Mapped[UUID] = mapped_column(ForeignKey("workspaces.id"))
    scope: Mapped[str]
    scope_id: Mapped[UUID]
    unit: Mapped[str]
    period: Mapped[str]
    cap: Mapped[Decimal]
    spent: Mapped[Decimal] = mapped_column(server_default=text("0"))
    reserved: Mapped[Decimal] = mapped_column(server_default=text("0"))
    day: Mapped[date] = mapped_column(server_default=text("(now() AT TIME ZONE 'UTC')::date"))
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]

    __table_args__ = (
        UniqueConstraint("workspace_id", "scope", "scope_id", "unit", "period"),
        CheckConstraint(one_of("scope", BudgetScope), "scope"),
        CheckConstraint(one_of("unit", BudgetUnit), "unit"),
        CheckConstraint(one_of("period", BudgetPeriod), "period"),
        CheckConstraint("cap >= 0", "cap"),
    )


class BudgetHoldRow(Base):
    """The amount that one model call reserves of one budget until it is settled. A call of unknown outcome keeps its reservation."""

    __tablename__ = "budget_holds"
    turn_id: Mapped[UUID] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    budget_id: Mapped[UUID] = mapped_column(ForeignKey("budgets.id", ondelete="CASCADE"), primary_key=True)
    workspace_id: Mapped[UUID]
    amount: Mapped[Decimal]
    day: Mapped[date]

    __table_args__ = (Index("ix_budget_holds_budget_id", "budget_id"),)
