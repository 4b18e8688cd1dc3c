"""The chaos run in a size that fits the suite; `make chaos` runs it in full."""

from __future__ import annotations

import pytest

from benchmarks import chaos
from tests.pipeline.stack import Stack


@pytest.mark.timeout(180)
def test_a_worker_killed_every_few_seconds_loses_and_repeats_nothing(stack: Stack):
    outcome = chaos.run(stack, messages=150, sessions=40, workers=2, kill_every_s=3.0, within_s=90)

    assert outcome.wrong == []
    assert outcome.kills >= 2
    assert outcome.taken_over > 0, "no turn was cut: the run proves nothing"
