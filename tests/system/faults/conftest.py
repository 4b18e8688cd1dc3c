"""One rig for all faults of a broker, so that lasting damage by one fault fails the next ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cli.standalone.unprivileged import scratch_directory
from tests.system.faults.rig import Kind, Rig
from tests.system.faults.rig import rig as make_rig


@pytest.fixture(scope="module")
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """Provide the rig with the module's `BROKER`."""
    kind: Kind = request.module.BROKER
    # Long enough to keep leases on a busy machine: without a lost reply, no model call may be repeated.
    lease_s, heartbeat_s = "3", "0.5"
    with (
        scratch_directory("turnline-faults-") as directory,
        make_rig(kind, directory, TURNLINE_TURN_LEASE_S=lease_s, TURNLINE_TURN_HEARTBEAT_S=heartbeat_s) as made,
    ):
        yield made
