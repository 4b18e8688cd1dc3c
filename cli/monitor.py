"""What an operator who watches looks at: the database, and, where it answers, the broker and its workers."""

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

from cli.database import safe_url
from cli.errors import SetupError
from observability.queue_depth import Depth, depths
from settings import Settings
from store.database import MAINTENANCE_ROLE
from store.operations import activity, system_stats, workers
from store.operations.activity import Activity
from store.operations.system_stats import SystemStats
from tasks.celery_app import QUEUES, make_app

STATS_S = 1.0
SHOWN_S = 600.0  # a worker that nobody has seen for longer is left out


@dataclass(frozen=True, slots=True)
class Broker:
    """What the broker told. `pools`: the pool's numbers by worker; empty where `fault` says why there are none."""

    queues: Mapping[str, Depth] = field(default_factory=dict)
    pools: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    fault: str = ""


@dataclass(frozen=True, slots=True)
class View:
    """One look at everything. `workers`: their rows, those seen of late; `broker` is None before it has answered or refused."""

    at: datetime
    standing: SystemStats
    recent: Activity
    workers: list[dict[str, Any]]
    broker: Broker | None


class Watch:
    """Looks, again and again. The broker is asked beside it, so that one that is away holds nothing up."""

    def __init__(self, settings: Settings, every_s: float) -> None:
        self._url = settings.maintenance_database_url or settings.database_url
        self._every_s = every_s
        self._db: psycopg.Connection | None = None
        self._celery = make_app(settings) if settings.broker_url else None
        self._broker: Broker | None = None if self._celery else Broker(fault="CELERY_BROKER_URL is not set")
        self._stopped = threading.Event()
        self._asked = threading.Event()
        if self._celery is not None:
            threading.Thread(target=self._ask_broker, args=(self._celery,), name="broker", daemon=True).start()

    def look(self, *, wait_s: float = 0.0) -> View:
        """Look once, waiting for the broker's first word for `wait_s` at most.

        Raises:
            SetupError: the database does not answer or was not migrated.
        """
        self._asked.wait(wait_s)
        try:
            if self._db is None or self._db.closed:
                self._db = system_stats.connected(self._url, role=MAINTENANCE_ROLE)
            with self._db.cursor(row_factory=dict_row) as cursor:
                rows = cursor.execute(workers.ALL).fetchall()
            now = datetime.now(UTC)
            seen = [row for row in rows if (now - row["seen_at"]).total_seconds() < SHOWN_S]
            return View(now, system_stats.look(self._db), activity.read(self._db), seen, self._broker)
        except psycopg.errors.UndefinedFunction as error:
            raise SetupError(f"The database {safe_url(self._url)} is older than this program. Run `turnline migrate`.") from error
        except psycopg.Error as error:
            raise SetupError(f"The database {safe_url(self._url)} does not answer: {str(error).strip()}") from error

    def close(self) -> None:
        """Look no more."""
        self._stopped.set()
        if self._db is not None:
            self._db.close()

    def _ask_broker(self, celery: Celery) -> None:
        while not self._stopped.is_set():
            began = time.monotonic()
            try:
                queues = depths(celery, QUEUES)
                told = celery.control.inspect(timeout=STATS_S).stats() or {}
                self._broker = Broker(queues, {name: stats["pool"] for name, stats in told.items()})
            except Exception as error:  # noqa: BLE001 - every transport has errors of its own; the view says that it is away
                self._broker = Broker(fault=f"the broker does not answer ({type(error).__name__})")
            self._asked.set()
            self._stopped.wait(max(0.2, self._every_s - (time.monotonic() - began)))
