"""System-wide counts and ages for operators' metrics, without any workspace's data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import psycopg

from engine.enums import OPEN_TURNS, HealthStatus
from store.database import APP_ROLE, connect_arguments

TIMEOUT_MS = 3000


@dataclass(frozen=True, slots=True)
class Open:
    """Open turns of one status, and how long ago the oldest was opened."""

    count: int = 0
    oldest_s: float = 0.0


@dataclass(frozen=True, slots=True)
class JobStats:
    """A job's last success, the duration of that run, and its last failure. Times in seconds since 1970; None: never."""

    succeeded_at: float | None = None
    seconds: float | None = None
    failed_at: float | None = None


@dataclass(frozen=True, slots=True)
class SystemStats:
    """One reading. `behind_s`: how long the oldest turn that could run at once has waited for a worker.

    `leases`: those of running turns, `live` and `run_out`. `integrations`: enabled ones by health. `violations`: of the last audit,
    None before the first. `workers`: seen within a minute; `stalled`: ended by their watchdog within a day.
    """

    turns: Mapping[str, Open] = field(default_factory=dict)
    behind_s: float = 0.0
    leases: Mapping[str, int] = field(default_factory=dict)
    integrations: Mapping[str, int] = field(default_factory=dict)
    jobs: Mapping[str, JobStats] = field(default_factory=dict)
    violations: int | None = None
    audited_at: float | None = None
    workers: int = 0
    stalled: int = 0


def read(url: str, *, role: str = APP_ROLE) -> SystemStats:
    """Read the stats on a new connection. Raises psycopg.Error."""
    with connected(url, role=role) as db:
        return look(db)


def connected(url: str, *, role: str = APP_ROLE) -> psycopg.Connection:
    """Open a connection for `look`. Raises psycopg.Error."""
    return psycopg.connect(url, autocommit=True, **connect_arguments(role, "turnline-metrics"))


def look(db: psycopg.Connection) -> SystemStats:
    """Read the stats on this connection, for `TIMEOUT_MS` at most. Raises psycopg.Error."""
    with db.transaction():  # SET LOCAL: a pooler may give the next transaction another client
        db.execute(f"SET LOCAL statement_timeout = {TIMEOUT_MS}")
        row = db.execute("SELECT system_stats()").fetchone()
    assert row is not None  # noqa: S101 - a function of SQL returns a row
    return of(row[0])


def of(found: Mapping[str, Any]) -> SystemStats:
    """Return the stats from the JSON of `system_stats()`, in which null means that there was nothing to count."""
    turns, audit = found["turns"] or {}, found["audit"] or {}
    return SystemStats(
        turns={status: Open(**turns.get(status, {})) for status in OPEN_TURNS},
        behind_s=found["behind_s"] or 0.0,
        leases=found["leases"],
        integrations={status: (found["integrations"] or {}).get(status, 0) for status in HealthStatus},
        jobs={job: JobStats(**told) for job, told in (found["jobs"] or {}).items()},
        violations=audit.get("violations"),
        audited_at=audit.get("finished_at"),
        workers=found["workers"]["seen"],
        stalled=found["workers"]["stalled"],
    )
