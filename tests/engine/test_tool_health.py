"""Tool health gets worse step by step, and better after several answers in a row."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.enums import HealthStatus
from engine.tools.health import Health, Thresholds

THREE = Thresholds(degraded_after=2, unhealthy_after=4, healthy_after=2)
ORDER = [HealthStatus.HEALTHY, HealthStatus.DEGRADED, HealthStatus.UNHEALTHY]


def statuses(observations: str, start: HealthStatus = HealthStatus.UNKNOWN) -> str:
    """Return the first letter of the status after each observation: "." is an answer, "x" a failure."""
    health, seen = Health(start), ""
    for one in observations:
        health = health.after(one == ".", THREE)
        seen += {"unknown": "?", "healthy": "h", "degraded": "d", "unhealthy": "u"}[health.status]
    return seen


@pytest.mark.parametrize(
    ("observations", "seen"),
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
def test_health_transitions(observations: str, seen: str):
    assert statuses(observations) == seen


@given(st.text(alphabet=".x", max_size=60), st.builds(Thresholds, st.integers(1, 3), st.integers(3, 6), st.integers(1, 4)))
def test_any_observations_give_a_consistent_state(observations: str, thresholds: Thresholds):
    health = Health()
    for at, one in enumerate(observations):
        before, health = health, health.after(one == ".", thresholds)
        so_far = observations[: at + 1]
        if health.status is HealthStatus.UNHEALTHY and before.status is not HealthStatus.UNHEALTHY:
            assert so_far.endswith("x" * thresholds.unhealthy_after)
        if health.status is HealthStatus.HEALTHY and before.status in (HealthStatus.DEGRADED, HealthStatus.UNHEALTHY):
            assert so_far.endswith("." * thresholds.healthy_after)
        if one == "x" and before.status in ORDER:
            assert ORDER.index(health.status) >= ORDER.index(before.status)
        if one == "." and before.status in ORDER:
            assert ORDER.index(health.status) <= ORDER.index(before.status)
    if observations.endswith("." * thresholds.healthy_after) and observations:
        assert health.status is HealthStatus.HEALTHY
    if observations.endswith("x" * thresholds.unhealthy_after):
        assert health.status is HealthStatus.UNHEALTHY
