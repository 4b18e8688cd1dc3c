"""The retry policy of a turn, as a table."""

from __future__ import annotations

import pytest

from engine.errors import Ambiguous, ProviderDown, RateLimited, ReplyLost, TimedOut, Transient, Unreachable
from engine.turn.commit import Finish, Park
from engine.turn.retry import PARK_MAX_S, Retry, after_failure


def lowest(low: float, high: float) -> float:
    return low


def highest(low: float, high: float) -> float:
    return high


@pytest.mark.parametrize(
    ("error", "failures", "expected"),
    [
        (ProviderDown("500"), 1, Retry(0.1)),
        (ReplyLost("reset"), 2, Retry(0.1)),
        (TimedOut("120 s"), 2, Retry(0.1)),
        (RateLimited("429", retry_after_s=5.0), 1, Retry(5.0)),
        (RateLimited("429", retry_after_s=5.1), 1, Park(5.1, True, "RateLimited", "429")),
        (RateLimited("429", retry_after_s=0.2), 3, Park(1.0, True, "RateLimited", "429")),
        (RateLimited("429"), 3, Park(1.0, True, "RateLimited", "429")),
        (Unreachable("refused"), 3, Park(1.0, True, "Unreachable", "refused")),
        (ProviderDown("500"), 3, Park(1.0, False, "ProviderDown", "500")),
        (ReplyLost("reset"), 3, Park(1.0, False, "ReplyLost", "reset")),
        (ProviderDown("503", retry_after_s=30.0), 1, Park(30.0, False, "ProviderDown", "503")),
    ],
)
def test_short_wait_is_retried_in_process_and_long_one_is_parked(error: Transient | Ambiguous, failures: int, expected: Retry | Park):
    assert after_failure(error, failures=failures, attempts=1, elapsed_s=0.0, patience_left_s=60.0, jitter=lowest) == expected


@pytest.mark.parametrize(
    ("attempts", "elapsed_s", "longest_s"), [(1, 0.0, 4.0), (3, 0.0, 16.0), (9, 0.0, PARK_MAX_S), (1, 100.0, 25.0), (1, 9999.0, PARK_MAX_S)]
)
def test_parked_waits_grow_with_attempts_and_with_the_age_of_the_turn(attempts: int, elapsed_s: float, longest_s: float):
    parked = after_failure(ProviderDown("500"), failures=3, attempts=attempts, elapsed_s=elapsed_s, patience_left_s=3600.0, jitter=highest)
    assert parked == Park(longest_s, False, "ProviderDown", "500")


@pytest.mark.parametrize("failures", [1, 2])
def test_wait_before_a_retry_in_process_doubles(failures: int):
    reaction = after_failure(ProviderDown("500"), failures=failures, attempts=1, elapsed_s=0.0, patience_left_s=60.0, jitter=highest)
    assert reaction == Retry(0.5 * 2**failures)


@pytest.mark.parametrize("patience_left_s", [0.9, 0.0, -5.0])
def test_a_wait_longer_than_the_patience_left_fails_the_turn(patience_left_s: float):
    reaction = after_failure(RateLimited("HTTP 429"), failures=3, attempts=1, elapsed_s=0.0, patience_left_s=patience_left_s, jitter=lowest)
    assert reaction == Finish("failed", "RateLimited", "HTTP 429; waiting 1 s more would exceed the longest time that a turn may take")
