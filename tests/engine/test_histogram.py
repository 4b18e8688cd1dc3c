"""Histograms add up in any order, and their percentiles are within the documented error."""

from __future__ import annotations

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.histogram import BOUNDS, ERROR, LONGEST_MS, bucket_of, count, merge, of, percentile

TIMES = st.lists(st.integers(0, LONGEST_MS - 1) | st.integers(0, 50) | st.integers(0, 20_000), max_size=60)


@given(TIMES, TIMES, TIMES)
def test_adding_up_is_the_same_in_any_order_and_grouping(a: list[int], b: list[int], c: list[int]):
    whole = of(a + b + c)

    assert merge(of(a), merge(of(b), of(c))) == merge(merge(of(c), of(a)), of(b)) == merge(whole) == dict(sorted(whole.items()))
    assert count(whole) == len(a + b + c)


@given(TIMES, TIMES)
def test_subtracting_an_addition_restores_the_histogram(kept: list[int], gone: list[int]):
    away = {bucket: -n for bucket, n in of(gone).items()}

    assert merge(of(kept + gone), away) == merge(of(kept))


@given(TIMES.filter(bool), st.sampled_from([50.0, 90.0, 95.0, 99.0, 100.0]))
def test_percentile_error_is_within_its_bound(times: list[int], percent: float):
    true = sorted(times)[max(1, ceil(len(times) * percent / 100)) - 1]
    estimated = percentile(of(times), percent)

    assert estimated is not None
    assert abs(estimated - true) <= ERROR * true


@pytest.mark.parametrize("time", [0, 1, 9, 10, 11, 12, 999, BOUNDS[-1] - 1, BOUNDS[-1], 10 * BOUNDS[-1]])
def test_a_time_lies_between_the_bounds_of_its_bucket(time: int):
    bucket = bucket_of(time)

    assert bucket == 0 or BOUNDS[bucket - 1] <= time
    assert bucket == len(BOUNDS) or time < BOUNDS[bucket]


def test_percentiles_of_an_empty_histogram_and_of_the_last_bucket():
    assert percentile({}, 50) is None
    assert percentile(of([]), 99) is None
    assert percentile(of([90 * 86_400_000]), 50) == BOUNDS[-1] >= LONGEST_MS
