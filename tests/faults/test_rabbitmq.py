"""Every fault under load, with RabbitMQ as the broker: quorum queues, confirms, a delivery limit."""

from __future__ import annotations

import pytest

from tests.faults.faults import FAULTS
from tests.faults.load import Load
from tests.faults.rig import Rig
from tests.faults.run import run
from tests.rabbitmq import ABSENT, RabbitMQ

BROKER = "rabbitmq"

pytestmark = pytest.mark.skipif(not RabbitMQ.executable(), reason=ABSENT)


@pytest.mark.parametrize("name", FAULTS)
def test_nothing_is_lost_and_nothing_done_twice(rig: Rig, name: str):
    fault = FAULTS[name]()
    if BROKER in fault.absent:
        pytest.skip(fault.absent[BROKER])

    outcome = run(rig, fault, Load())

    assert outcome.wrong == [], f"{outcome}\n{rig.stack.tails()}"
