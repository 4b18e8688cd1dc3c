"""Live data for `turnline top`: from the database, and from the broker and its workers if they answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import psycopg
from celery import Celery
from psycopg.rows import dict_row

from cli.database import maintenance_url, safe_url
from cli.errors import SetupError
from observability.queue_depth import Depth, depths
from settings import Settings
from store.database import MAINTENANCE_ROLE
from store.operations import activity, system_stats, workers
from store.operations.activity import Activity
from store.operations.system_stats import SystemStats
from tasks.celery_app import QUEUES, make_app

INSPECT_TIMEOUT_S = 1.0
WORKER_SHOWN_FOR_S = 600.0  # after it was last seen


@dataclass(frozen=True, slots=True)
class BrokerStats:
    """Queues, and pool statistics by worker name. Both are empty if `fault` says why the broker could not be read."""

    queues: Mapping[str, Depth] = field(default_factory=dict)
    pools: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of the system at one moment. `workers`: rows of recently seen ones. `broker`: None until its first result."""

    at: datetime
    stats: SystemStats
    activity: Activity
    workers: list[dict[str, Any]]
    broker: BrokerStats | None


class Monitor:
    """Takes snapshots. A thread reads the broker, so that an unreachable broker does not delay them."""

    def __init__(self, settings: Settings, interval_s: float) -> None:
        self._url = maintenance_url(settings)
        self._interval_s = interval_s
        self._db: psycopg.Connection | None = None
        self._celery = make_app(settings) if settings.broker_url else None
        self._broker: BrokerStats | None = None if self._celery else BrokerStats(fault="CELERY_BROKER_URL is not set")
        self._closed = threading.Event()
        self._broker_read = threading.Event()
        if self._celery is not None:
            threading.Thread(target=self._read_broker, args=(self._celery,), name="broker", daemon=True).start()

    def snapshot(self, *, broker_timeout_s: float = 0.0) -> Snapshot:
        """Return the current state, waiting at most `broker_timeout_s` for the first result from the broker.

        Raises:
            SetupError: the database does not answer or was not migrated.
        """
        self._broker_read.wait(broker_timeout_s)
        try:
            if self._db is None or self._db.closed:
                self._db = system_stats.connected(self._url, role=MAINTENANCE_ROLE)
            with self._db.cursor(row_factory=dict_row) as cursor:
                rows = cursor.execute(workers.ALL).fetchall()
            now = datetime.now(UTC)
            recent = [row for row in rows if (now - row["seen_at"]).total_seconds() < WORKER_SHOWN_FOR_S]
            return Snapshot(now, system_stats.look(self._db), activity.read(self._db), recent, self._broker)
        except psycopg.errors.UndefinedFunction as error:
            raise SetupError(f"The schema of {safe_url(self._url)} is older than this program. Run `turnline migrate`.") from error
        except psycopg.Error as error:
            raise SetupError(f"The database {safe_url(self._url)} does not answer: {str(error).strip()}") from error

    def close(self) -> None:
        """Stop the thread and close the connection to the database."""
        self._closed.set()
        if self._db is not None:
            self._db.close()

    def _read_broker(self, celery: Celery) -> None:
        while not self._closed.is_set():
            began = time.monotonic()
            try:
                queues = depths(celery, QUEUES)
                stats = celery.control.inspect(timeout=INSPECT_TIMEOUT_S).stats() or {}
                self._broker = BrokerStats(queues, {name: worker["pool"] for name, worker in stats.items()})
            except Exception as error:  # noqa: BLE001 - every transport has its own errors; the display shows the fault
                self._broker = BrokerStats(fault=f"the broker does not answer ({type(error).__name__})")
            self._broker_read.set()
            self._closed.wait(max(0.2, self._interval_s - (time.monotonic() - began)))
