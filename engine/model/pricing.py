"""The cost of usage at a price, in `Decimal` arithmetic by kind of token."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal, localcontext

from engine.events import Usage

_PER = Decimal(1_000_000)
_LEDGER_STEP = Decimal("1e-10")
_NOTHING = Decimal(0)


@dataclass(frozen=True, slots=True)
class Rate:
    """US dollars per million tokens of one kind.

    `tiers` are (input tokens, dollars) in ascending order: a call with more input tokens pays that rate for all its tokens.
    """

    usd: Decimal
    tiers: tuple[tuple[int, Decimal], ...] = ()

    def at(self, input_tokens: int) -> Decimal:
        """Return the rate for a call with `input_tokens`."""
        usd = self.usd
        for above, tier_usd in self.tiers:
            if input_tokens > above:
                usd = tier_usd
        return usd


@dataclass(frozen=True, slots=True)
class Price:
    """A vendor's rates for one model. A kind of token without a rate is charged as the kind that includes it."""

    input: Rate
    output: Rate
    cached_input: Rate | None = None
    cache_write: Rate | None = None
    reasoning: Rate | None = None
    call_usd: Decimal = _NOTHING


def cost_usd(usage: Usage, price: Price) -> Decimal:
    """Return the cost of one model call in US dollars, unrounded.

    `cached_input_tokens` and `cache_write_tokens` are parts of `input_tokens`, `reasoning_tokens` of `output_tokens`.
    """
    size = usage.input_tokens
    plain_input, plain_output = usage.input_tokens, usage.output_tokens
    with localcontext(prec=60):
        millionths = _NOTHING
        if price.cached_input is not None:
            plain_input -= usage.cached_input_tokens
            millionths += usage.cached_input_tokens * price.cached_input.at(size)
        if price.cache_write is not None:
            plain_input -= usage.cache_write_tokens
            millionths += usage.cache_write_tokens * price.cache_write.at(size)
        if price.reasoning is not None:
            plain_output -= usage.reasoning_tokens
            millionths += usage.reasoning_tokens * price.reasoning.at(size)
        millionths += plain_input * price.input.at(size) + plain_output * price.output.at(size)
        return millionths / _PER + price.call_usd


def max_cost_usd(input_tokens: int, max_tokens: int, price: Price) -> Decimal:
    """Return the most that a call with `input_tokens` and at most `max_tokens` of output can cost, unrounded."""
    calls = [
        Usage(input_tokens=input_tokens, output_tokens=max_tokens, cache_write_tokens=written, reasoning_tokens=thought)
        for written in (0, input_tokens)
        for thought in (0, max_tokens)
    ]
    return max(cost_usd(usage, price) for usage in calls)


def ledger_usd(cost: Decimal) -> Decimal:
    """Return `cost` as the ledger's `numeric(20,10)` keeps it, the only place where money is rounded: half to even, ten digits."""
    with localcontext(prec=60):
        return cost.quantize(_LEDGER_STEP, rounding=ROUND_HALF_EVEN)
