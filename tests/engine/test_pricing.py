"""Money: exact, by kind of token, rounded in one place."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from engine.events import Usage
from engine.model.pricing import Price, Rate, cost_usd, ledger_usd, max_cost_usd

MINI = Price(Rate(Decimal("0.15")), Rate(Decimal("0.6")), cached_input=Rate(Decimal("0.075")))

dollars = st.decimals(0, 100, places=6)
rates = st.builds(Rate, dollars, st.lists(st.tuples(st.integers(1, 300_000), dollars), max_size=2).map(lambda tiers: tuple(sorted(tiers))))
prices = st.builds(Price, rates, rates, st.none() | rates, st.none() | rates, st.none() | rates, st.decimals(0, 1, places=6))


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    given_, made = draw(st.integers(0, 10**6)), draw(st.integers(0, 10**6))
    cached = draw(st.integers(0, given_))
    return Usage(given_, cached, draw(st.integers(0, given_ - cached)), made, draw(st.integers(0, made)))


def test_kinds_of_token_have_their_own_rates():
    usage = Usage(input_tokens=1000, cached_input_tokens=400, output_tokens=100, reasoning_tokens=60)
    assert cost_usd(usage, MINI) == Decimal("0.00018")  # 600 × 0.15 + 400 × 0.075 + 100 × 0.6, by the million
    assert cost_usd(Usage(), MINI) == 0


def test_a_tier_is_for_all_tokens_of_a_call_that_is_larger():
    tiered = Price(Rate(Decimal(1), ((200_000, Decimal(2)),)), Rate(Decimal(10), ((200_000, Decimal(15)),)))
    assert cost_usd(Usage(input_tokens=200_000, output_tokens=1000), tiered) == Decimal("0.21")
    assert cost_usd(Usage(input_tokens=200_001, output_tokens=1000), tiered) == Decimal("0.415002")


@given(usages(), prices)
def test_costs_are_exact(usage: Usage, price: Price):
    size = usage.input_tokens
    kinds = [
        (usage.cached_input_tokens, price.cached_input or price.input),
        (usage.cache_write_tokens, price.cache_write or price.input),
        (usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens, price.input),
        (usage.reasoning_tokens, price.reasoning or price.output),
        (usage.output_tokens - usage.reasoning_tokens, price.output),
    ]
    exact = sum((count * Fraction(rate.at(size)) for count, rate in kinds), Fraction(0)) / 1_000_000 + Fraction(price.call_usd)
    cost = cost_usd(usage, price)
    assert Fraction(cost) == exact
    assert abs(Fraction(ledger_usd(cost)) - exact) <= Fraction(1, 2 * 10**10)


@given(usages(), prices)
def test_no_usage_costs_more_than_the_estimate(usage: Usage, price: Price):
    dearer_cache = price.cached_input is not None and price.cached_input.at(usage.input_tokens) > price.input.at(usage.input_tokens)
    if not dearer_cache:
        assert cost_usd(usage, price) <= max_cost_usd(usage.input_tokens, usage.output_tokens, price)


def test_the_ledger_rounds_half_to_even():
    assert [str(ledger_usd(Decimal(cost))) for cost in ("0.00000000005", "0.00000000015", "0.00000000025", "1.5", "0")] == [
        "0E-10", "2E-10", "2E-10", "1.5000000000", "0E-10",
    ]  # fmt: skip
    assert str(ledger_usd(Decimal("9999999999.99999999994"))) == "9999999999.9999999999"
