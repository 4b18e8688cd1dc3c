"""What a fault is: something done to the rig, undone again, and proved to have happened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from tests.system.faults.rig import Rig


class Fault:
    """One fault, done once by `inject` and `heal`; several times under a longer load. Made anew for each run.

    `held_s`: how long it lasts before it is healed. `not_on`: on which broker it cannot be, and why. `exits`: exit codes of the
    product's processes that belong to it. `leaves_unacknowledged`: on Valkey, messages that died with their reader stay listed until
    the visibility timeout brings them back, to turns long settled.
    """

    name: ClassVar[str]
    held_s: ClassVar[float] = 2.0
    not_on: ClassVar[Mapping[str, str]] = {}
    exits: ClassVar[frozenset[int]] = frozenset()
    leaves_unacknowledged: ClassVar[bool] = False
    extra_model_calls: ClassVar[bool] = True
    """Whether a model call may have to be made again because its answer was lost."""

    def inject(self, rig: Rig) -> None:
        """Do it. Returns when it is in force; what only lasts a moment is over then."""
        raise NotImplementedError

    def heal(self, rig: Rig) -> None:
        """Undo it. Returns when nothing more stands in the way."""

    def before(self, rig: Rig) -> None:
        """What is prepared before the load begins."""

    def after(self, rig: Rig) -> None:
        """What is put back after all turns have ended."""

    def happened(self, rig: Rig) -> dict[str, int]:
        """What shows that it happened, by name; each must be above 0."""
        raise NotImplementedError

    def wrong(self, rig: Rig) -> list[str]:
        """What this fault in particular must not lead to, and did, in sentences."""
        return []
