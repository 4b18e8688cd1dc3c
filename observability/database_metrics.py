"""`store.operations.system_stats` as Prometheus gauges."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from store.operations.system_stats import SystemStats

log = logging.getLogger(__name__)

EVERY_S = 5.0


class Gauges(Collector):
    """The gauges of one database. `read` is called at most every `EVERY_S` seconds, however many scrapes there are.

    If it fails, only `turnline_database_up` is exported.
    """

    def __init__(self, read: Callable[[], SystemStats]) -> None:
        self._read_stats = read
        self._lock = threading.Lock()
        self._stats: SystemStats | None = None
        self._fresh_until = 0.0

    def describe(self) -> list[Metric]:
        """Return nothing, so that registering this collector does not read the database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Return the gauges, at most `EVERY_S` seconds old."""
        stats = self._read()
        yield GaugeMetricFamily("turnline_database_up", "Whether the database answered.", value=stats is not None)
        if stats is not None:
            yield from families(stats)

    def _read(self) -> SystemStats | None:
        with self._lock:
            if time.monotonic() >= self._fresh_until:
                try:
                    self._stats = self._read_stats()
                except Exception as error:  # noqa: BLE001 - whatever it is, the scrape shows that the database is not up
                    log.warning("Database metrics could not be read: %s", type(error).__name__)
                    self._stats = None
                self._fresh_until = time.monotonic() + EVERY_S
            return self._stats


def families(stats: SystemStats) -> Iterator[Metric]:
    """Yield the gauges of `stats`. Every process exports the same values: take the maximum over processes, not the sum."""
    count = GaugeMetricFamily("turnline_open_turns", "Open turns by status.", labels=["status"])
    oldest = GaugeMetricFamily("turnline_open_turns_oldest_age_seconds", "Age of the oldest open turn by status.", labels=["status"])
    for status, turns in stats.turns.items():
        count.add_metric([status], turns.count)
        oldest.add_metric([status], turns.oldest_s)
    yield count
    yield oldest
    yield GaugeMetricFamily("turnline_behind_seconds", "How long the oldest runnable turn has waited.", value=stats.behind_s)
    yield _labelled("turnline_session_leases", "Leases of running turns: live, or run out.", "state", stats.leases)
    yield _labelled("turnline_tool_integrations", "Enabled integrations by health.", "status", stats.integrations)
    jobs = stats.jobs.items()
    successes = {name: job.succeeded_at for name, job in jobs if job.succeeded_at is not None}
    failures = {name: job.failed_at for name, job in jobs if job.failed_at is not None}
    durations = {name: job.seconds for name, job in jobs if job.seconds is not None}
    yield _labelled("turnline_job_last_success_timestamp_seconds", "When a job last succeeded.", "job", successes)
    yield _labelled("turnline_job_last_failure_timestamp_seconds", "When a job last failed or was cut off.", "job", failures)
    yield _labelled("turnline_job_last_duration_seconds", "How long a job's last successful run took.", "job", durations)
    if stats.violations is not None:
        yield GaugeMetricFamily("turnline_audit_violations", "Violations that the last audit found.", value=stats.violations)
    if stats.audited_at is not None:
        yield GaugeMetricFamily("turnline_audit_timestamp_seconds", "When the last audit ended.", value=stats.audited_at)
    yield GaugeMetricFamily("turnline_workers", "Workers whose watchdog has reported within a minute.", value=stats.workers)
    yield GaugeMetricFamily("turnline_workers_stalled", "Workers that their watchdog ended within a day.", value=stats.stalled)


def _labelled(name: str, documentation: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, documentation, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
