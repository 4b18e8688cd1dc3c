"""The base class of faults: a fault is injected into the rig, healed, and proves that it happened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from tests.system.faults.rig import Rig


class Fault:
    """One fault. `inject` and `heal` are called once, or several times under a longer load; each run makes a new object.

    `duration_s`: seconds between the injection and the healing. `not_on`: the brokers on which it is impossible, with the reasons. `exits`:
    exit codes of the product's processes that it causes. `leaves_unacknowledged`: on Valkey, messages of a lost consumer stay in the
    list of unacknowledged ones until the visibility timeout, long after their turns have settled.
    """

    name: ClassVar[str]
    duration_s: ClassVar[float] = 2.0
    not_on: ClassVar[Mapping[str, str]] = {}
    exits: ClassVar[frozenset[int]] = frozenset()
    leaves_unacknowledged: ClassVar[bool] = False
    extra_model_calls: ClassVar[bool] = True
    """True if a model call may be repeated because its reply was lost."""

    def inject(self, rig: Rig) -> None:
        """Inject the fault and return once it is in force, or over if it lasts only a moment."""
        raise NotImplementedError

    def heal(self, rig: Rig) -> None:
        """Undo the fault and return once the product can work again."""

    def before(self, rig: Rig) -> None:
        """Prepare the fault before the load begins."""

    def after(self, rig: Rig) -> None:
        """Restore the rig after all turns have ended."""

    def evidence(self, rig: Rig) -> dict[str, int]:
        """Return counts, by name, that prove that the fault happened. Each must be above 0."""
        raise NotImplementedError

    def wrong(self, rig: Rig) -> list[str]:
        """Return a sentence for each problem that only this fault checks for."""
        return []
