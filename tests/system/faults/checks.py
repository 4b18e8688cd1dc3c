"""The state that every fault must leave behind, on either broker."""

from __future__ import annotations

import pytest

from tests.system.faults.all_faults import FAULTS
from tests.system.faults.load import Load
from tests.system.faults.rig import Rig
from tests.system.faults.run_fault import run


def check_fault(rig: Rig, name: str, broker: str) -> None:
    """Run one fault under load; no message may be lost and no effect repeated."""
    fault = FAULTS[name]()
    if broker in fault.not_on:
        pytest.skip(fault.not_on[broker])

    outcome = run(rig, fault, Load())

    assert outcome.wrong == [], f"{outcome}\n{rig.stack.tails()}"


def check_clean_stop(rig: Rig) -> None:
    """Stop the workers; the broker returns unacknowledged messages to their queue."""
    assert [rig.remove(worker) for worker in rig.workers] == [0, 0]

    left = rig.queues.waiting()
    assert left <= 2, "more than the sweeps that beat has sent since"
