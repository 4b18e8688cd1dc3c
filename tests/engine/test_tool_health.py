"""Down step by step, up after several answers in a row."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.enums import HealthStatus
from engine.tools.health import Health, Thresholds

THREE = Thresholds(degraded_after=2, unhealthy_after=4, healthy_after=2)
ORDER = [HealthStatus.HEALTHY, HealthStatus.DEGRADED, HealthStatus.UNHEALTHY]


def statuses(heard: str, start: HealthStatus = HealthStatus.UNKNOWN) -> str:
    """The statuses' first letters after each of `heard`: "." an answer, "x" a failure."""
    health, seen = Health(start), ""
    for one in heard:
        health = health.after(one == ".", THREE)
        seen += {"unknown": "?", "healthy": "h", "degraded": "d", "unhealthy": "u"}[health.status]
    return seen


@pytest.mark.parametrize(
    ("heard", "seen"),
    [
        (".", "h"),
        ("x", "?"),
        ("xx", "?d"),
        (".x.x.", "hhhhh"),
        (".xx", "hhd"),
        (".xxxx", "hhddu"),
        (".xxxx.", "hhdduu"),
        (".xxxx..", "hhdduuh"),
        (".xxxx.x.", "hhdduuuu"),
        (".xx.x", "hhddd"),
        (".xx..", "hhddh"),
        (".xx.xxxx", "hhddddd" + "u"),
    ],
)
def test_health_transitions(heard: str, seen: str):
    assert statuses(heard) == seen


@given(st.text(alphabet=".x", max_size=60), st.builds(Thresholds, st.integers(1, 3), st.integers(3, 6), st.integers(1, 4)))
def test_any_observations_give_a_consistent_state(heard: str, thresholds: Thresholds):
    health = Health()
    for at, one in enumerate(heard):
        before, health = health, health.after(one == ".", thresholds)
        lately = heard[: at + 1]
        if health.status is HealthStatus.UNHEALTHY and before.status is not HealthStatus.UNHEALTHY:
            assert lately.endswith("x" * thresholds.unhealthy_after)
        if health.status is HealthStatus.HEALTHY and before.status in (HealthStatus.DEGRADED, HealthStatus.UNHEALTHY):
            assert lately.endswith("." * thresholds.healthy_after)
        if one == "x" and before.status in ORDER:
            assert ORDER.index(health.status) >= ORDER.index(before.status)
        if one == "." and before.status in ORDER:
            assert ORDER.index(health.status) <= ORDER.index(before.status)
    if heard.endswith("." * thresholds.healthy_after) and heard:
        assert health.status is HealthStatus.HEALTHY
    if heard.endswith("x" * thresholds.unhealthy_after):
        assert health.status is HealthStatus.UNHEALTHY
