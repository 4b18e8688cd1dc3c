"""The chaos run in a size that fits the suite; `make chaos` runs it in full."""

from __future__ import annotations

import pytest

from benchmarks import chaos
from tests.support.stack import Stack


@pytest.mark.timeout(300)
def test_workers_killed_every_few_seconds_lose_and_repeat_nothing(stack: Stack):
    # Eight turns in each session, of a second and more each: the run outlasts several kills, however fast the machine is. On a slow
    # one a turn may be cut five times, which would rightly end it as dead; and there is an end to the killing.
    stack.env |= {"TURNLINE_TURN_MAX_ATTEMPTS": "50"}
    outcome = chaos.run(stack, messages=240, sessions=30, workers=2, kill_every_s=3.0, at_most_kills=6, within_s=220, latency_ms=300)

    assert outcome.wrong == []
    assert outcome.kills >= 2
    assert outcome.taken_over > 0, "no turn was cut: the run proves nothing"
