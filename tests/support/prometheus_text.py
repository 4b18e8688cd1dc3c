"""Reads metrics in Prometheus's text format."""

from __future__ import annotations

import httpx
from prometheus_client.parser import text_string_to_metric_families

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples_of(text: str) -> Samples:
    """Return every sample of an exposition, by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(url: str, **headers: str) -> Samples:
    """Return the samples that `url` exposes."""
    return samples_of(httpx.get(url, headers=headers, trust_env=False, timeout=20).raise_for_status().text)


def value(samples: Samples, name: str, **labels: str) -> float | None:
    """Return one sample's value, or None if it is absent."""
    return samples.get((name, frozenset(labels.items())))
