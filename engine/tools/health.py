"""The health of an integration, derived from the results of its latest probes and calls."""

from __future__ import annotations

from dataclasses import dataclass

from engine.enums import HealthStatus


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Results in a row that change the status: failures to degraded and to unhealthy, answers to healthy again."""

    degraded_after: int = 2
    unhealthy_after: int = 5
    healthy_after: int = 2


@dataclass(frozen=True, slots=True)
class Health:
    """A status, and the length of the present run of failures, or of answers since the last failure (counted while not healthy)."""

    status: HealthStatus = HealthStatus.UNKNOWN
    failures: int = 0
    answers: int = 0

    def after(self, answered: bool, thresholds: Thresholds) -> Health:
        """Return the health after one more probe or call. `answered`: an answer arrived, whatever it said.

        The status falls one step at a time. It rises in one step, after several answers in a row: one answer among failures is not a
        recovery.
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
