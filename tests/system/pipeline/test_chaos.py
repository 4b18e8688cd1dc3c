"""The chaos test, small enough for the suite; `make chaos` runs the full size."""

from __future__ import annotations

import pytest

from benchmarks import chaos
from tests.support.stack import Stack


@pytest.mark.timeout(300)
def test_workers_killed_every_few_seconds_lose_and_repeat_nothing(stack: Stack):
    # Each session has eight turns of at least one second, so the run outlasts several kills even on a fast machine. On a slow machine
    # a turn may be interrupted more than five times; the raised limit keeps it from ending as dead. The number of kills is limited.
    stack.env |= {"TURNLINE_TURN_MAX_ATTEMPTS": "50"}
    outcome = chaos.run(stack, messages=240, sessions=30, workers=2, kill_every_s=3.0, at_most_kills=6, within_s=220, latency_ms=300)

    assert outcome.wrong == []
    assert outcome.kills >= 2
    assert outcome.taken_over > 0, "no turn was interrupted, so the run proves nothing"
