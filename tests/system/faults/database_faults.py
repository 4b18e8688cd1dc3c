"""Faults of Postgres and of the network between it and the product."""

from __future__ import annotations

import contextlib
import signal
import time

import psycopg

from tests.support.proxy import Proxy
from tests.system.faults import network_faults
from tests.system.faults.fault import Fault
from tests.system.faults.rig import Rig

OURS = "starts_with(application_name, 'turnline')"


class PostgresKilled(Fault):
    """The postmaster gets SIGKILL. Two seconds later it starts again with the same data."""

    name = "Postgres killed"

    def __init__(self) -> None:
        self.killed = 0

    def inject(self, rig: Rig) -> None:
        self.killed += rig.postgres.kill() == -signal.SIGKILL

    def heal(self, rig: Rig) -> None:
        rig.postgres.start()

    def evidence(self, rig: Rig) -> dict[str, int]:
        return {"postmasters killed": self.killed}


class BackendsTerminated(Fault):
    """For two seconds, pg_terminate_backend on a random half of the product's connections, five times a second."""

    name = "backends terminated"
    duration_s = 0.0

    def __init__(self) -> None:
        self.terminated = 0

    def inject(self, rig: Rig) -> None:
        for _ in range(10):
            self.terminated += rig.stack.one(
                f"SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {OURS} AND random() < 0.5"
            )
            time.sleep(0.2)

    def evidence(self, rig: Rig) -> dict[str, int]:
        return {"backends terminated": self.terminated}


class ConnectionsExhausted(Fault):
    """Another application takes all of the server's connections, including the product's."""

    name = "connections exhausted"
    duration_s = 3.0

    def __init__(self) -> None:
        self.taken: list[psycopg.Connection[tuple[object, ...]]] = []
        self.most = self.refusals = 0

    def inject(self, rig: Rig) -> None:
        with psycopg.connect(rig.postgres.url, autocommit=True) as operator:  # opened before all connections are taken
            self._take_all(rig)
            while self._end_ours(operator):
                self._take_all(rig)
        self.most = max(self.most, len(self.taken))

    @staticmethod
    def _end_ours(operator: psycopg.Connection[tuple[int]]) -> int:
        row = operator.execute(f"SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {OURS}").fetchone()
        return row[0] if row else 0

    def _take_all(self, rig: Rig) -> None:
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                self.taken.append(psycopg.connect(rig.postgres.login_url, application_name="another application"))
        self.refusals += 1

    def heal(self, rig: Rig) -> None:
        for connection in self.taken:
            connection.close()
        self.taken.clear()

    def evidence(self, rig: Rig) -> dict[str, int]:
        return {"connections taken": self.most, "connections refused": self.refusals}


class _ToDatabase(network_faults.ProxyFault):
    def proxy(self, rig: Rig) -> Proxy:
        return rig.to_database


class PostgresStalled(_ToDatabase, network_faults.Stalled):
    name = "Postgres stalled"


class PostgresRepliesLost(_ToDatabase, network_faults.RepliesLost):
    """Commits are made and their replies are lost."""

    name = "Postgres's replies lost"
