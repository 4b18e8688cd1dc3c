"""Budgets."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Annotated
from uuid import UUID

from pydantic import Field, StrictInt, StringConstraints

from api.schemas.common import Paged, RequestBody, ResponseBody, example
from engine.enums import BudgetPeriod, BudgetScope, BudgetUnit

Cap = Annotated[
    StrictInt | Annotated[str, StringConstraints(pattern=r"^[0-9]{1,10}(\.[0-9]{1,10})?$")],
    Field(description="US dollars as text, or whole tokens; at most ten digits before the point and ten after.", examples=["25.50"]),
]
Amount = Annotated[str, Field(pattern=r"^-?\d+(\.\d+)?$", examples=["25.5"], description="US dollars or tokens, by the budget's unit.")]


class BudgetChange(RequestBody):
    """A new cap."""

    cap: Cap

    @property
    def amount(self) -> Decimal:
        """Return the cap as a number."""
        return Decimal(self.cap)


class BudgetCreate(BudgetChange):
    """A cap on the usage of model calls."""

    model_config = example(scope="workspace", unit="usd", period="day", cap="25.50")
    scope: BudgetScope
    scope_id: Annotated[UUID | None, Field(description="The agent or session; optional for a workspace.")] = None
    unit: BudgetUnit
    period: Annotated[BudgetPeriod, Field(description="day: from midnight to midnight, UTC.")]


class Budget(ResponseBody):
    """A cap on the usage of model calls. `spent` plus `reserved` never exceeds `cap`, unless the cap was lowered since."""

    id: UUID
    scope: BudgetScope
    scope_id: UUID
    unit: BudgetUnit
    period: BudgetPeriod
    cap: Amount
    spent: Annotated[Amount, Field(description="By calls whose usage is known; for a daily budget, today.")]
    reserved: Annotated[
        Amount,
        Field(description="The most that calls in flight can use, and that calls with an unknown outcome may have used."),
    ]
    day: Annotated[date | None, Field(description="The day (UTC) of `spent` and `reserved`; null if the period is total.")]
    created_at: datetime
    updated_at: datetime


class Budgets(Paged):
    """Budgets, newest first."""

    items: list[Budget]
