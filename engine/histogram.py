"""Times as histograms that can be added up: buckets that grow by a tenth, so that a percentile is known within five in a hundred.

A histogram maps a bucket's number to how many times fell into it. Adding two up loses nothing, in any order; taking one away again
leaves what was there before. That is what lets hours be added to days, and days to months.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from itertools import pairwise
from math import ceil
from typing import TypeAlias

Histogram: TypeAlias = Mapping[int, int]
"""Bucket -> count. A bucket that is not named holds nothing."""

LONGEST_MS = 7 * 86_400_000
ERROR = 0.05
"""By how much of the true value a percentile may be off, below `LONGEST_MS`."""


def _bounds() -> tuple[int, ...]:
    bounds = [1]
    while bounds[-1] < LONGEST_MS:
        bounds.append(max(bounds[-1] + 1, bounds[-1] * 11 // 10))
    return tuple(bounds)


BOUNDS = _bounds()
"""Where buckets begin, in milliseconds: bucket n holds the times from BOUNDS[n - 1] on and below BOUNDS[n]; bucket 0 holds 0 ms.

The database has the same list (`histogram_bounds()`): changing it would change what is kept.
"""
_MIDDLES = (0, *((low + high - 1) / 2 for low, high in pairwise(BOUNDS)), BOUNDS[-1])


def bucket_of(milliseconds: int) -> int:
    """The bucket that a time falls into."""
    return bisect_right(BOUNDS, milliseconds)


def of(times: Iterable[int]) -> dict[int, int]:
    """The histogram of times in milliseconds."""
    counts: dict[int, int] = {}
    for time in times:
        bucket = bucket_of(time)
        counts[bucket] = counts.get(bucket, 0) + 1
    return counts


def merge(*histograms: Histogram) -> dict[int, int]:
    """Histograms added up; in whatever order and grouping, it comes to the same. Buckets that come to nothing are left out."""
    counts: dict[int, int] = {}
    for histogram in histograms:
        for bucket, count in histogram.items():
            counts[bucket] = counts.get(bucket, 0) + count
    return {bucket: count for bucket, count in sorted(counts.items()) if count}


def count(histogram: Histogram) -> int:
    """How many times are in it."""
    return sum(histogram.values())


def percentile(histogram: Histogram, percent: float) -> float | None:
    """The time in milliseconds that `percent` of a hundred do not exceed (nearest rank), within `ERROR`; None where there is none.

    Of times of `LONGEST_MS` and more only that is known: it is what comes back for them.
    """
    rank = max(1, ceil(count(histogram) * percent / 100))
    for bucket in sorted(histogram):
        rank -= histogram[bucket]
        if rank <= 0:
            return float(_MIDDLES[bucket])
    return None
