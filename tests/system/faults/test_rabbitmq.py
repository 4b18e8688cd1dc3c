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
def test_no_message_is_lost_and_no_effect_repeated(rig: Rig, name: str):
    fault = FAULTS[name]()
    if BROKER in fault.not_on:
        pytest.skip(fault.not_on[BROKER])

    outcome = run(rig, fault, Load())

    assert outcome.wrong == [], f"{outcome}\n{rig.stack.tails()}"


def test_workers_stop_cleanly_afterwards_and_leave_no_messages_unacknowledged(rig: Rig):
    assert [rig.remove(worker) for worker in rig.workers] == [0, 0]

    left = rig.queues.waiting()  # RabbitMQ returns unacknowledged messages to their queue when the worker disconnects
    assert left <= 2, "more than the sweeps that beat has sent since"
