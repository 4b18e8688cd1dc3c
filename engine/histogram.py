"""Histograms of times that can be added up. Buckets grow by a tenth, so a percentile is exact within five per cent.

A histogram maps the number of a bucket to a count. Adding loses nothing, in any order, and subtracting one again restores the other. So
hours can be added up to days, and days to months.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from itertools import pairwise
from math import ceil
from typing import TypeAlias

Histogram: TypeAlias = Mapping[int, int]
"""Bucket -> count. Empty buckets are left out."""

LONGEST_MS = 7 * 86_400_000
ERROR = 0.05
"""The relative error of a percentile below `LONGEST_MS`."""


def _bounds() -> tuple[int, ...]:
    bounds = [1]
    while bounds[-1] < LONGEST_MS:
        bounds.append(max(bounds[-1] + 1, bounds[-1] * 11 // 10))
    return tuple(bounds)


BOUNDS = _bounds()
"""The lower bounds of buckets in milliseconds: bucket n has times from BOUNDS[n - 1] up to, not including, BOUNDS[n]; bucket 0 has 0 ms.

The database has the same list (`histogram_bounds()`). Changing it would falsify stored histograms.
"""
_MIDDLES = (0, *((low + high - 1) / 2 for low, high in pairwise(BOUNDS)), BOUNDS[-1])


def bucket_of(milliseconds: int) -> int:
    """Return the bucket of a time."""
    return bisect_right(BOUNDS, milliseconds)


def of(times: Iterable[int]) -> dict[int, int]:
    """Return the histogram of times in milliseconds."""
    counts: dict[int, int] = {}
    for time in times:
        bucket = bucket_of(time)
        counts[bucket] = counts.get(bucket, 0) + 1
    return counts


def merge(*histograms: Histogram) -> dict[int, int]:
    """Return the sum of histograms, without empty buckets. Order and grouping do not matter."""
    counts: dict[int, int] = {}
    for histogram in histograms:
        for bucket, count in histogram.items():
            counts[bucket] = counts.get(bucket, 0) + count
    return {bucket: count for bucket, count in sorted(counts.items()) if count}


def count(histogram: Histogram) -> int:
    """Return the number of times in a histogram."""
    return sum(histogram.values())


def percentile(histogram: Histogram, percent: float) -> float | None:
    """Return the time in milliseconds that `percent` per cent do not exceed (nearest rank), within `ERROR`; None if there is no time.

    Times of `LONGEST_MS` and more count as `LONGEST_MS`.
    """
    rank = max(1, ceil(count(histogram) * percent / 100))
    for bucket in sorted(histogram):
        rank -= histogram[bucket]
        if rank <= 0:
            return float(_MIDDLES[bucket])
    return None
