"""How an integration is doing, from what was heard of it last: healthy, degraded, unhealthy, and back."""

from __future__ import annotations

from dataclasses import dataclass

from engine.enums import HealthStatus


@dataclass(frozen=True, slots=True)
class Thresholds:
    """How many in a row it takes: failures until it is degraded, and unhealthy; answers until it is healthy again."""

    degraded_after: int = 2
    unhealthy_after: int = 5
    healthy_after: int = 2


@dataclass(frozen=True, slots=True)
class Health:
    """A status, and what has come in a row: failures, or answers since the last failure (counted while it is not healthy)."""

    status: HealthStatus = HealthStatus.UNKNOWN
    failures: int = 0
    answers: int = 0

    def after(self, answered: bool, thresholds: Thresholds) -> Health:
        """The health after one more probe or call: it was answered, whatever the answer was, or it failed on the way.

        Down it goes a step at a time. Up it goes at once, but not before several answers in a row: one answer among failures is not
        a recovery.
        """
        if answered:
            answers = self.answers + 1
            if self.status in (HealthStatus.UNKNOWN, HealthStatus.HEALTHY) or answers >= thresholds.healthy_after:
                return Health(HealthStatus.HEALTHY)
            return Health(self.status, 0, answers)
        failures = self.failures + 1
        if self.status is HealthStatus.UNHEALTHY or failures >= thresholds.unhealthy_after:
            return Health(HealthStatus.UNHEALTHY, failures)
        if self.status is HealthStatus.DEGRADED or failures >= thresholds.degraded_after:
            return Health(HealthStatus.DEGRADED, failures)
        return Health(self.status, failures)
