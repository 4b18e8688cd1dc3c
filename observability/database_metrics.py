"""`store.operations.system_stats` for Prometheus, and who may read metrics."""

from __future__ import annotations

import hmac
import ipaddress
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from store.operations.system_stats import SystemStats

log = logging.getLogger(__name__)

EVERY_S = 5.0
FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")


class Gauges(Collector):
    """The gauges of one database. `look` is called at most every `EVERY_S` seconds, whoever asks; where it fails only
    `turnline_database_up` is told."""

    def __init__(self, look: Callable[[], SystemStats]) -> None:
        self._look = look
        self._lock = threading.Lock()
        self._found: SystemStats | None = None
        self._until = 0.0

    def describe(self) -> list[Metric]:
        """Nothing: to be added to a registry it need not look."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The gauges, from a look just taken or one of a moment ago."""
        found = self._read()
        yield GaugeMetricFamily("turnline_database_up", "Whether the database told what follows.", value=found is not None)
        if found is not None:
            yield from families(found)

    def _read(self) -> SystemStats | None:
        with self._lock:
            if time.monotonic() >= self._until:
                try:
                    self._found = self._look()
                except Exception as error:  # noqa: BLE001 - whatever it is, the scrape says that the database is not up
                    log.warning("the gauges could not be read: %s", type(error).__name__)
                    self._found = None
                self._until = time.monotonic() + EVERY_S
            return self._found


def families(found: SystemStats) -> Iterator[Metric]:
    """`found` as families of gauges. Every process that tells them tells the same: take the greatest, not the sum."""
    count = GaugeMetricFamily("turnline_open_turns", "Open turns by status.", labels=["status"])
    oldest = GaugeMetricFamily("turnline_open_turns_oldest_age_seconds", "Age of the oldest open turn by status.", labels=["status"])
    for status, told in found.turns.items():
        count.add_metric([status], told.count)
        oldest.add_metric([status], told.oldest_s)
    yield count
    yield oldest
    yield GaugeMetricFamily("turnline_behind_seconds", "How long the oldest turn that could be carried has waited.", value=found.behind_s)
    yield _labelled("turnline_session_leases", "Leases of running turns: live, or run out.", "state", found.leases)
    yield _labelled("turnline_tool_integrations", "Enabled integrations by health.", "status", found.integrations)
    jobs = found.jobs.items()
    good = {job: told.succeeded_at for job, told in jobs if told.succeeded_at is not None}
    bad = {job: told.failed_at for job, told in jobs if told.failed_at is not None}
    took = {job: told.seconds for job, told in jobs if told.seconds is not None}
    yield _labelled("turnline_job_last_success_timestamp_seconds", "When a job last ended well.", "job", good)
    yield _labelled("turnline_job_last_failure_timestamp_seconds", "When a job last failed or was cut off.", "job", bad)
    yield _labelled("turnline_job_last_duration_seconds", "How long a job's last good run took.", "job", took)
    if found.violations is not None:
        yield GaugeMetricFamily("turnline_audit_violations", "Violations that the last audit found.", value=found.violations)
    if found.audited_at is not None:
        yield GaugeMetricFamily("turnline_audit_timestamp_seconds", "When the last audit ended.", value=found.audited_at)
    yield GaugeMetricFamily("turnline_workers", "Workers whose watchdog was heard within a minute.", value=found.workers)
    yield GaugeMetricFamily("turnline_workers_stalled", "Workers that their watchdog ended within a day.", value=found.stalled)


def _labelled(name: str, words: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, words, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def refusal(peer: str, headers: Mapping[str, str], token: str) -> tuple[int, str] | None:
    """Why somebody may not read metrics, as a status and a sentence; None where they may.

    `headers` by lower-case name. With a `token`, whoever shows it may. Without one, whoever asks from this machine and for nobody else.
    """
    if token:
        shown = headers.get("authorization", "")
        if hmac.compare_digest(shown.encode(), f"Bearer {token}".encode()):
            return None
        return 401, "Metrics need the token of TURNLINE_METRICS_TOKEN, as a bearer token."
    if _is_loopback(peer) and not any(name in headers for name in FORWARDED):
        return None
    return 403, "Without TURNLINE_METRICS_TOKEN, metrics are told to this machine only."


def _is_loopback(peer: str) -> bool:
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
