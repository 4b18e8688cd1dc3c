"""Liveness and readiness."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from api.readiness import DaemonCheck
from store import migrate
from tests.support.api_server import SECRET_KEY, Service, serving
from tests.support.servers import Databases, EmbeddedValkey, free_port, until

ALL_OK = {"database": "ok", "broker": "ok"}


def get(service: Service, path: str = "/readyz") -> httpx.Response:
    return httpx.get(service.url + path, trust_env=False, timeout=30)


def reports(service: Service, **checks: str) -> bool:
    return bool(get(service).json()["checks"] == ALL_OK | checks)


@contextmanager
def serve(database_url: str, broker_url: str) -> Iterator[Service]:
    with serving(DATABASE_URL=database_url, CELERY_BROKER_URL=broker_url, secret_keys=SECRET_KEY) as made:
        yield made


@pytest.fixture
def own_valkey() -> Iterator[EmbeddedValkey]:
    """Start a server that the test may stop."""
    with EmbeddedValkey(None) as server:
        yield server


def test_health_and_readiness_need_no_key(service: Service):
    alive, ready = get(service, "/healthz"), get(service)

    assert (alive.status_code, alive.json()) == (200, {"status": "ok"})
    assert (ready.status_code, ready.json()) == (200, {"status": "ready", "checks": ALL_OK})
    assert ready.headers["cache-control"] == "no-store"


def test_outdated_schema_is_reported_until_it_is_migrated(databases: Databases, valkey: EmbeddedValkey):
    url = databases.empty()
    with serve(url, valkey.url) as service:
        migrate.upgrade(url, "base")
        assert get(service, "/healthz").status_code == 200
        found = get(service)
        assert found.status_code == 503

        migrate.upgrade(url)
        until(lambda: reports(service))
        service.sql("UPDATE alembic_version SET version_num = 'older'")
        until(lambda: reports(service, database="the schema is not at the newest revision; run turnline migrate"))
    databases.drop(url)


def test_hanging_broker_is_reported_until_it_answers(database_url: str, own_valkey: EmbeddedValkey):
    with serve(database_url, own_valkey.url) as service:
        assert get(service).status_code == 200
        pid = own_valkey.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            until(lambda: not reports(service))
            found = get(service)
            threads = threading.active_count()
            for _ in range(3):
                assert get(service).status_code == 503
            assert threading.active_count() <= threads, "each check of a hanging broker keeps a thread"
        finally:
            os.kill(pid, signal.SIGCONT)
        until(lambda: reports(service))

    assert (found.status_code, found.headers["content-type"]) == (503, "application/problem+json")
    document = found.json()
    assert (document["status"], document["code"]) == (503, "UNAVAILABLE")
    assert document["detail"] == "Not ready: the broker does not answer."
    assert document["errors"] == [{"where": "broker", "what": "the broker does not answer"}]
    assert document["checks"] == ALL_OK | {"broker": "the broker does not answer"}


def test_refusing_broker_and_hanging_database_are_reported(valkey: EmbeddedValkey):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections and sends nothing
        url = f"postgresql://nobody@127.0.0.1:{silent.getsockname()[1]}/x"
        with serve(url, f"redis://127.0.0.1:{free_port()}") as service:
            assert reports(service, database="the database does not answer", broker="the broker does not answer")
            assert get(service, "/healthz").status_code == 200


async def test_hanging_check_is_joined_and_not_repeated():
    threads_used, go = [], threading.Event()

    def block_or_fail() -> None:
        threads_used.append(threading.current_thread())
        assert go.wait(10)

    check = DaemonCheck(block_or_fail)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await check()
    go.set()
    await check()
    assert len(threads_used) == 1
    assert threads_used[0].daemon

    await check()
    assert len(threads_used) == 2


async def test_error_of_a_check_is_raised_to_every_waiter():
    def block_or_fail() -> None:
        raise ConnectionRefusedError

    check = DaemonCheck(block_or_fail)
    found = await asyncio.gather(check(), check(), return_exceptions=True)
    assert [type(error) for error in found] == [ConnectionRefusedError, ConnectionRefusedError]
