"""Every fault under load, with RabbitMQ as the broker: quorum queues, confirms, a delivery limit."""

from __future__ import annotations

import pytest

from tests.support.rabbitmq import ABSENT, RabbitMQ
from tests.system.faults.all_faults import FAULTS
from tests.system.faults.checks import check_clean_stop, check_fault
from tests.system.faults.rig import Rig

BROKER = "rabbitmq"

pytestmark = pytest.mark.skipif(not RabbitMQ.executable(), reason=ABSENT)


@pytest.mark.parametrize("name", FAULTS)
def test_no_message_is_lost_and_no_effect_repeated(rig: Rig, name: str):
    check_fault(rig, name, BROKER)


def test_workers_stop_cleanly_afterwards_and_leave_no_messages_unacknowledged(rig: Rig):
    check_clean_stop(rig)
