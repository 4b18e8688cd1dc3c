"""Every fault under load, with RabbitMQ as the broker: quorum queues, confirms, a delivery limit."""

from __future__ import annotations

import pytest

from tests.support.rabbitmq import ABSENT, RabbitMQ
from tests.system.faults.all_faults import FAULTS
from tests.system.faults.load import Load
from tests.system.faults.rig import Rig
from tests.system.faults.run_fault import run

BROKER = "rabbitmq"

pytestmark = pytest.mark.skipif(not RabbitMQ.executable(), reason=ABSENT)


@pytest.mark.parametrize("name", FAULTS)
def test_nothing_is_lost_and_nothing_done_twice(rig: Rig, name: str):
    fault = FAULTS[name]()
    if BROKER in fault.absent:
        pytest.skip(fault.absent[BROKER])

    outcome = run(rig, fault, Load())

    assert outcome.wrong == [], f"{outcome}\n{rig.stack.tails()}"


def test_workers_leave_in_order_after_all_that_and_hold_nothing_back(rig: Rig):
    assert [rig.dismiss(worker) for worker in rig.workers] == [0, 0]

    left = rig.queues.waiting()  # on RabbitMQ, what a worker had not acknowledged comes back to its queue when the worker goes
    assert left <= 2, "at most the sweeps that beat has sent since"
