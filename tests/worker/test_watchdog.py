"""When a worker counts as idle. What becomes of one that does, with real processes: tests/system/pipeline/test_watchdog.py."""

from __future__ import annotations

from dataclasses import replace

import pytest

from worker.watchdog import Idle, Pulse

AT_REST = Pulse(replies=5, begun=3, active=0, reserved=0, limit=4)


def seconds(*pulses: Pulse, every_s: float = 10) -> list[float]:
    """For how long it had been idle at each look."""
    idle = Idle(look_every_s=10, late_s=10, now=0)
    return [idle.look(pulse, number * every_s) for number, pulse in enumerate(pulses)]


def test_nothing_new_adds_up():
    assert seconds(AT_REST, AT_REST, AT_REST) == [0, 10, 20]


@pytest.mark.parametrize(
    "changed", [replace(AT_REST, replies=6), replace(AT_REST, begun=4), replace(AT_REST, active=1), replace(AT_REST, reserved=1)]
)
def test_whatever_happens_is_progress(changed: Pulse):
    assert seconds(AT_REST, AT_REST, changed) == [0, 10, 0]


def test_a_full_worker_asks_for_nothing_and_is_not_idle():
    full = replace(AT_REST, active=4, reserved=4)
    assert seconds(full, full, full) == [0, 0, 0]
    nearly = replace(AT_REST, active=3, reserved=3)
    assert seconds(nearly, nearly, nearly) == [0, 10, 20]


def test_with_its_loop_stuck_nothing_is_progress():
    stuck = [replace(AT_REST, replies=number, active=4, reserved=4, lag_s=10.0 * number) for number in range(4)]
    assert seconds(*stuck) == [0, 10, 20, 30]


def test_a_process_that_was_stopped_is_not_blamed_for_the_time():
    assert seconds(AT_REST, AT_REST, every_s=3600) == [0, 20]
