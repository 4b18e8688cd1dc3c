"""The ledger: one row per request to a model provider, written before the request is."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, ForeignKeyConstraint, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from engine.enums import ModelCallState
from models.base import Base, Count, CreatedAt, one_of


class ModelCallRow(Base):
    """One model call. `reserved` before the request; then `settled` (its usage is known), `failed` (it was not carried out)
    or `unknown` (it may have been carried out and billed).

    `cost_usd` is in US dollars at the price when it was made; null in a settled row means that no price is known.
    `estimated`: the call was cut off, and its tokens are counted from the request and the streamed text.
    `reserved_*`: what was held against budgets.
    `cached_input_tokens` and `cache_write_tokens` are inside `input_tokens`, `reasoning_tokens` inside `output_tokens`.
    """

    __tablename__ = "model_calls"
    turn_id: Mapped[UUID] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    workspace_id: Mapped[UUID]
    session_id: Mapped[UUID]
    provider: Mapped[str]
    model: Mapped[str]
    state: Mapped[str]
    input_tokens: Mapped[Count]
    cached_input_tokens: Mapped[Count]
    cache_write_tokens: Mapped[Count]
    output_tokens: Mapped[Count]
    reasoning_tokens: Mapped[Count]
    cost_usd: Mapped[Decimal | None]
    price_source: Mapped[str | None]
    reserved_usd: Mapped[Decimal | None]
    reserved_tokens: Mapped[int | None] = mapped_column(BigInteger)
    estimated: Mapped[bool] = mapped_column(server_default=text("false"))
    ttft_ms: Mapped[int | None]
    latency_ms: Mapped[int | None]
    provider_request_id: Mapped[str | None]
    error_class: Mapped[str | None]
    created_at: Mapped[CreatedAt]
    settled_at: Mapped[datetime | None]

    __table_args__ = (
        ForeignKeyConstraint(["workspace_id", "turn_id"], ["turns.workspace_id", "turns.id"]),
        Index("ix_model_calls_session_id", "session_id"),
        CheckConstraint(one_of("state", ModelCallState), "state"),
    )
