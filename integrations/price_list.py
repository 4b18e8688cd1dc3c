"""Price model calls from the list bundled with `genai-prices`, offline. A model that is not listed is unpriced."""

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
from engine.model.request import Cost

PRICE_SOURCE = f"genai-prices {genai_prices.__version__}"
UNPRICED = Cost(None, None)

_PER_THOUSAND_CALLS = 1000
_snapshot = get_snapshot()  # takes 0.2 s, so do it at startup and not in the first turn


def cost_of(provider: str, model: str, usage: Usage | None, at: datetime) -> Cost:
    """Return the cost of a call, rounded as in the ledger; `Cost(None, None)` if usage or price is unknown.

    `at` is the time of the call; prices change, some of them with the time of day.
    """
    price = price_of(provider, model, at) if usage is not None else None
    if usage is None or price is None:
        return UNPRICED
    return Cost(ledger_usd(cost_usd(usage, price)), PRICE_SOURCE)


def max_cost_of(provider: str, model: str, input_tokens: int, max_tokens: int, at: datetime | None = None) -> Decimal | None:
    """Return the most that a call can cost, for reservations, or None if the price is unknown. `at` defaults to now."""
    price = price_of(provider, model, at or datetime.now(UTC))
    return None if price is None else ledger_usd(max_cost_usd(input_tokens, max_tokens, price))


def price_of(provider: str, model: str, at: datetime) -> Price | None:
    """Return the price of `model` at the time `at`, or None if unknown."""
    listed = _listed(provider, model)
    return None if listed is None else listed.at(at)


@dataclass(frozen=True, slots=True)
class _Listed:
    """A listed model, with its prices converted to our type once."""

    info: ModelInfo
    prices: dict[int, Price | None] = field(default_factory=dict)

    def at(self, moment: datetime) -> Price | None:
        price = self.info.get_prices(moment)
        # Keyed by identity: the listed prices live as long as the process.
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
    input_rate, output_rate = _rate(listed.input_mtok), _rate(listed.output_mtok)
    if input_rate is None or output_rate is None:
        return None
    calls = _rate(listed.requests_kcount)
    return Price(
        input=input_rate,
        output=output_rate,
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
