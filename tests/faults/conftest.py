"""One rig for all faults of a broker: what one fault breaks for good, the next one finds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tasks.unprivileged import scratch_directory
from tests.faults.rig import Kind, Rig
from tests.faults.rig import rig as make_rig


@pytest.fixture(scope="module")
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """The rig on the module's `BROKER`."""
    kind: Kind = request.module.BROKER
    with scratch_directory("turnline-faults-") as directory, make_rig(kind, directory) as made:
        yield made
