"""Prices from the installed list, compared with genai-prices' own calculation, without network access."""

from __future__ import annotations

import random
import socket
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from genai_prices import Usage as ListUsage
from genai_prices import calc_price
from genai_prices.data_snapshot import get_snapshot

from engine.events import Usage
from engine.model.pricing import ledger_usd
from engine.model.request import Cost
from integrations.price_list import PRICE_SOURCE, UNPRICED, cost_of, max_cost_of

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


def test_a_listed_model_has_its_exact_cost():
    usage = Usage(input_tokens=1000, cached_input_tokens=100, output_tokens=100, reasoning_tokens=50)
    assert cost_of("openai", "gpt-4o-mini", usage, NOW) == Cost(Decimal("0.0002025"), PRICE_SOURCE)
    assert cost_of("openai", "gpt-4o-mini-2024-07-18", usage, NOW).cost_usd == Decimal("0.0002025")
    assert PRICE_SOURCE.startswith("genai-prices 0.2.")
    assert cost_of("openai", "gpt-4o-mini", Usage(), NOW) == Cost(Decimal(0), PRICE_SOURCE)


def test_cost_agrees_with_the_providers_own_figure():
    # A recorded answer of xAI that contains its cost: 1,399,000 ticks of 1e-10 dollars.
    usage = Usage(input_tokens=291, cached_input_tokens=244, output_tokens=26 + 189, reasoning_tokens=189)
    assert cost_of("xai", "grok-3-mini", usage, NOW).cost_usd == Decimal("0.0001399")


@pytest.mark.parametrize(
    ("provider", "model"),
    [("openai", "no-such-model"), ("ollama", "llama3"), ("nobody", "gpt-4o"), ("", ""), ("openai", "\ud83d"), ("openai", "x" * 10_000)],
)
def test_an_unlisted_model_is_unpriced_and_not_free(provider: str, model: str):
    assert cost_of(provider, model, Usage(input_tokens=5, output_tokens=5), NOW) == UNPRICED == Cost(None, None)
    assert max_cost_of(provider, model, 5, 5) is None


def test_unknown_usage_is_unpriced():
    assert cost_of("openai", "gpt-4o-mini", None, NOW) == UNPRICED


def test_every_listed_model_costs_what_genai_prices_calculates():
    rng = random.Random(7)
    priced = 0
    for provider in get_snapshot().providers:
        for model in provider.models:
            if provider.find_model(model.id) is not model:
                continue  # another entry of the list has this name
            prompt, completion = rng.randrange(300_000), rng.randrange(10_000)
            cached = rng.randrange(prompt + 1)
            usage = Usage(prompt, cached, rng.randrange(prompt - cached + 1), completion, rng.randrange(completion + 1))
            ours = cost_of(provider.id, model.id, usage, NOW)
            if ours.cost_usd is None:
                continue
            counts = ListUsage(
                input_tokens=usage.input_tokens,
                cache_read_tokens=usage.cached_input_tokens,
                cache_write_tokens=usage.cache_write_tokens,
                output_tokens=usage.output_tokens,
                output_reasoning_tokens=usage.reasoning_tokens,
            )
            theirs = calc_price(counts, model.id, provider_id=provider.id, genai_request_timestamp=NOW)
            assert ours.cost_usd == ledger_usd(theirs.total_price), (provider.id, model.id, usage)
            priced += 1
    assert priced > 1500


def test_prices_depend_on_the_time_of_the_call():
    changed = [
        (provider.id, model)
        for provider in get_snapshot().providers
        for model in provider.models
        if isinstance(model.prices, list) and len(model.prices) > 1 and provider.find_model(model.id) is model
    ]
    assert changed
    usage = Usage(input_tokens=1000, output_tokens=1000)
    moments = [datetime(year, month, 1, hour, tzinfo=UTC) for year in (2024, 2025, 2026) for month in (1, 6, 12) for hour in (0, 18)]
    costs = {model.id: {cost_of(provider, model.id, usage, moment).cost_usd for moment in moments} for provider, model in changed}
    assert any(len(different) > 1 for different in costs.values())


def test_max_cost_of_a_call():
    assert max_cost_of("openai", "gpt-4o-mini", 1000, 500, NOW) == Decimal("0.00045")
    anthropic = max_cost_of("anthropic", "claude-sonnet-4-5", 1000, 0, NOW)
    written = cost_of("anthropic", "claude-sonnet-4-5", Usage(input_tokens=1000, cache_write_tokens=1000), NOW)
    assert anthropic == written.cost_usd
    assert max_cost_of("openai", "gpt-4o-mini", 0, 0) == 0


def test_prices_are_never_fetched_from_the_network(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise AssertionError("a price was looked up on the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert cost_of("openai", "gpt-4.1", Usage(input_tokens=5), NOW).cost_usd
