"""The retry policy of a turn after a failed model call. Pure: times and jitter are passed in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine.errors import Ambiguous, RateLimited, Transient, Unreachable
from engine.turn.commit import Finish, Park

INLINE_WAIT_S = 5.0  # a longer wait must not hold a worker: the turn is parked
INLINE_TRIES = 3
PARK_MIN_S, PARK_MAX_S = 1.0, 60.0

Jitter = Callable[[float, float], float]
"""Returns a random number between its two arguments, as `random.uniform` does."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Send the request again in this worker after `wait_s` seconds."""

    wait_s: float


def after_failure(
    error: Transient | Ambiguous, *, failures: int, attempts: int, elapsed_s: float, patience_left_s: float, jitter: Jitter
) -> Retry | Park | Finish:
    """Return what to do after a failed model call: retry here if that is soon, park if it is not, fail when patience is used up.

    `failures`: failed requests in a row, this one included. `attempts`, `elapsed_s`: claims of the turn so far, and seconds between its
    first claim and this one. `patience_left_s`: how much longer the turn may take. A wait that the provider asks for is respected; it
    costs an attempt only if the provider is broken, not if it is busy (RateLimited) or out of reach (Unreachable).
    """
    requested_s = error.retry_after_s if isinstance(error, Transient) else None
    soon_s = requested_s if requested_s is not None else jitter(0.1, 0.5 * 2**failures)
    if failures < INLINE_TRIES and soon_s <= INLINE_WAIT_S:
        return Retry(soon_s)
    # Waits that cost no attempt grow with the turn's age instead.
    longest_s = min(PARK_MAX_S, max(2.0 ** (attempts + 1), elapsed_s / 4))
    wait_s = max(requested_s or 0.0, jitter(PARK_MIN_S, longest_s))
    if wait_s > patience_left_s:
        detail = f"{error}; waiting {wait_s:.0f} s more would exceed the longest time that a turn may take"
        return Finish("failed", error.error_class, detail)
    return Park(wait_s, isinstance(error, RateLimited | Unreachable), error.error_class, str(error))
