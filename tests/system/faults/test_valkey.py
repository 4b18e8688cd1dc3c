"""Every fault under load, with Valkey as the broker."""

from __future__ import annotations

import pytest

from tests.system.faults.all_faults import FAULTS
from tests.system.faults.checks import check_clean_stop, check_fault
from tests.system.faults.rig import Rig

BROKER = "valkey"


@pytest.mark.parametrize("name", FAULTS)
def test_no_message_is_lost_and_no_effect_repeated(rig: Rig, name: str):
    check_fault(rig, name, BROKER)


def test_workers_stop_cleanly_afterwards_and_leave_no_messages_unacknowledged(rig: Rig):
    check_clean_stop(rig)
