"""When a worker counts as idle. tests/system/pipeline/test_watchdog.py tests what happens then, with real processes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from worker.watchdog import Activity, IdleTimer

IDLE = Activity(replies=5, started=3, active=0, reserved=0, limit=4)


def seconds(*activities: Activity, every_s: float = 10) -> list[float]:
    """Return for how long the worker had been idle at each check."""
    idle = IdleTimer(check_every_s=10, late_s=10, now=0)
    return [idle.check(activity, number * every_s) for number, activity in enumerate(activities)]


def test_idle_time_adds_up():
    assert seconds(IDLE, IDLE, IDLE) == [0, 10, 20]


@pytest.mark.parametrize(
    "changed", [replace(IDLE, replies=6), replace(IDLE, started=4), replace(IDLE, active=1), replace(IDLE, reserved=1)]
)
def test_any_changed_counter_is_progress(changed: Activity):
    assert seconds(IDLE, IDLE, changed) == [0, 10, 0]


def test_full_worker_is_not_idle():
    full = replace(IDLE, active=4, reserved=4)
    assert seconds(full, full, full) == [0, 0, 0]
    nearly = replace(IDLE, active=3, reserved=3)
    assert seconds(nearly, nearly, nearly) == [0, 10, 20]


def test_worker_with_a_stuck_loop_is_idle():
    stuck = [replace(IDLE, replies=number, active=4, reserved=4, lag_s=10.0 * number) for number in range(4)]
    assert seconds(*stuck) == [0, 10, 20, 30]


def test_time_in_which_the_process_was_stopped_is_not_counted():
    assert seconds(IDLE, IDLE, every_s=3600) == [0, 20]
