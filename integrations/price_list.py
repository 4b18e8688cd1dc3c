"""What a model call cost, from the price list that comes with `genai-prices`: offline, and unpriced where the list has nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache

import genai_prices
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelInfo, ModelPrice, TieredPrices

from engine.events import Usage
from engine.model.pricing import Price, Rate, cost_usd, ledger_usd, max_cost_usd
from engine.turn.context import Cost

PRICE_SOURCE = f"genai-prices {genai_prices.__version__}"
UNPRICED = Cost(None, None)

_PER_THOUSAND_CALLS = 1000
_snapshot = get_snapshot()  # a fifth of a second, better spent at start than within the first turn


def cost_of(provider: str, model: str, usage: Usage | None, at: datetime) -> Cost:
    """Return what the call cost, as the ledger keeps it; `Cost(None, None)` where usage or price is not known.

    `at` is when the call was made; prices change, some with the time of day.
    """
    price = price_of(provider, model, at) if usage is not None else None
    if usage is None or price is None:
        return UNPRICED
    return Cost(ledger_usd(cost_usd(usage, price)), PRICE_SOURCE)


def max_cost_of(provider: str, model: str, input_tokens: int, max_tokens: int, at: datetime | None = None) -> Decimal | None:
    """Return the most that a call can cost, for reserving it, or None where the price is not known. `at` is now by default."""
    price = price_of(provider, model, at or datetime.now(UTC))
    return None if price is None else ledger_usd(max_cost_usd(input_tokens, max_tokens, price))


def price_of(provider: str, model: str, at: datetime) -> Price | None:
    """Return the price of `model` at that moment, or None where none is known."""
    listed = _listed(provider, model)
    return None if listed is None else listed.at(at)


@dataclass(frozen=True, slots=True)
class _Listed:
    """A model of the price list, and its prices in our form, made once each."""

    info: ModelInfo
    prices: dict[int, Price | None] = field(default_factory=dict)

    def at(self, moment: datetime) -> Price | None:
        price = self.info.get_prices(moment)
        # By identity: the list's prices live as long as the process.
        if id(price) not in self.prices:
            self.prices[id(price)] = _price(price)
        return self.prices[id(price)]


@lru_cache(maxsize=4096)
def _listed(provider: str, model: str) -> _Listed | None:
    try:
        _, info = _snapshot.find_provider_model(model, None, provider, None)
    except LookupError:
        return None
    return _Listed(info)


def _price(listed: ModelPrice) -> Price | None:
    given, made = _rate(listed.input_mtok), _rate(listed.output_mtok)
    if given is None or made is None:
        return None
    calls = _rate(listed.requests_kcount)
    return Price(
        input=given,
        output=made,
        cached_input=_rate(listed.cache_read_mtok),
        cache_write=_rate(listed.cache_write_mtok),
        reasoning=_rate(listed.output_reasoning_mtok),
        call_usd=calls.usd / _PER_THOUSAND_CALLS if calls is not None else Decimal(0),
    )


def _rate(listed: Decimal | TieredPrices | None) -> Rate | None:
    if listed is None:
        return None
    if isinstance(listed, TieredPrices):
        return Rate(listed.base, tuple((tier.start, tier.price) for tier in listed.tiers))
    return Rate(listed)
