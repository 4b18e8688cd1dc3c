"""Real servers for the tests: one Postgres and one Valkey per pytest process, migrated once, gone at the end."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from cli.standalone.process_utils import free_port
from cli.standalone.servers import EmbeddedPostgres, EmbeddedValkey
from store import migrate

__all__ = ["ROOT", "SECRET_KEY", "Databases", "EmbeddedPostgres", "EmbeddedValkey", "free_port", "process_env", "until"]

ROOT = Path(__file__).resolve().parents[2]
SECRET_KEY = "dGVzdHMtdXNlLXRoaXMta2V5LWFuZC1ub3RoaW5nLWU="  # 32 bytes, base64
_OURS = ("TURNLINE_", "CELERY_", "FLOWER_", "OPENAI_", "PG")
_ALSO_OURS = {"DATABASE_URL", "REDIS_URL", "LOG_LEVEL", "APP", "BROKER_URL", "RESULT_BACKEND", "LOADER", "CONFIG_MODULE"}


class Databases:
    """Makes databases on one server: empty ones, and migrated ones copied from a template that is migrated on first use."""

    _TEMPLATE = "turnline_template"

    def __init__(self, server: EmbeddedPostgres) -> None:
        self.server = server
        self._numbers = itertools.count(1)
        self._migrated = False

    def empty(self) -> str:
        """Create an empty database and return its URL."""
        return self._create(f"empty_{next(self._numbers)}", "template0")

    def migrated(self) -> str:
        """Create a database at the newest revision and return its URL."""
        if not self._migrated:
            migrate.upgrade(self._create(self._TEMPLATE, "template0"))
            self._migrated = True
        return self._create(f"migrated_{next(self._numbers)}", self._TEMPLATE)

    def drop(self, url: str) -> None:
        """Drop a database, also if it has open connections."""
        self._execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(urlsplit(url).path.lstrip("/"))))

    def _create(self, name: str, template: str) -> str:
        self._execute(sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(sql.Identifier(name), sql.Identifier(template)))
        return self.server.url_of(name)

    def _execute(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.server.url_of("postgres"), autocommit=True) as db:
            db.execute(statement)


def process_env(**values: str) -> dict[str, str]:
    """Return the environment for a child process: this process's without the product's settings, and with `values`."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(_OURS) and name not in _ALSO_OURS}
    paths = [str(ROOT), str(Path(sys.executable).parent)]
    return (
        env | {"PYTHONPATH": paths[0], "PATH": os.pathsep.join([paths[1], env.get("PATH", os.defpath)]), "PYTHONUNBUFFERED": "1"} | values
    )


def until(condition: Callable[[], object], within_s: float = 30.0) -> None:
    """Return once `condition()` is true; fail the test if that takes too long."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"the condition was not met within {within_s} s"
        time.sleep(0.02)
