"""What load balancers and operators ask: is it alive, is it ready, and what is not."""

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

PARTS = {"database": "ok", "broker": "ok"}


def ask(service: Service, path: str = "/readyz") -> httpx.Response:
    return httpx.get(service.url + path, trust_env=False, timeout=30)


def says(service: Service, **checks: str) -> bool:
    return bool(ask(service).json()["checks"] == PARTS | checks)


@contextmanager
def apart(database_url: str, broker_url: str) -> Iterator[Service]:
    with serving(DATABASE_URL=database_url, CELERY_BROKER_URL=broker_url, secret_keys=SECRET_KEY) as made:
        yield made


@pytest.fixture
def own_valkey() -> Iterator[EmbeddedValkey]:
    """A server of this test, which it may stop."""
    with EmbeddedValkey(None) as server:
        yield server


def test_it_is_alive_and_ready_without_a_key(service: Service):
    alive, ready = ask(service, "/healthz"), ask(service)

    assert (alive.status_code, alive.json()) == (200, {"status": "ok"})
    assert (ready.status_code, ready.json()) == (200, {"status": "ready", "checks": PARTS})
    assert ready.headers["cache-control"] == "no-store"


def test_a_schema_that_is_behind_is_named_and_noticed_when_it_is_not(databases: Databases, valkey: EmbeddedValkey):
    url = databases.empty()
    with apart(url, valkey.url) as service:
        migrate.upgrade(url, "base")
        assert ask(service, "/healthz").status_code == 200
        found = ask(service)
        assert found.status_code == 503

        migrate.upgrade(url)
        until(lambda: says(service))
        service.sql("UPDATE alembic_version SET version_num = 'older'")
        until(lambda: says(service, database="the schema is not at the newest revision; run turnline migrate"))
    databases.drop(url)


def test_the_broker_is_named_in_a_problem_document_and_noticed_when_it_is_back(database_url: str, own_valkey: EmbeddedValkey):
    with apart(database_url, own_valkey.url) as service:
        assert ask(service).status_code == 200
        pid = own_valkey.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            until(lambda: not says(service))
            found = ask(service)
            threads = threading.active_count()
            for _ in range(3):
                assert ask(service).status_code == 503
            assert threading.active_count() <= threads, "each look at a broker that hangs keeps a thread"
        finally:
            os.kill(pid, signal.SIGCONT)
        until(lambda: says(service))

    assert (found.status_code, found.headers["content-type"]) == (503, "application/problem+json")
    document = found.json()
    assert (document["status"], document["code"]) == (503, "UNAVAILABLE")
    assert document["detail"] == "Not ready: the broker does not answer."
    assert document["errors"] == [{"where": "broker", "what": "the broker does not answer"}]
    assert document["checks"] == PARTS | {"broker": "the broker does not answer"}


def test_a_broker_that_refuses_and_a_database_that_hangs(valkey: EmbeddedValkey):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and says nothing
        url = f"postgresql://nobody@127.0.0.1:{silent.getsockname()[1]}/x"
        with apart(url, f"redis://127.0.0.1:{free_port()}") as service:
            assert says(service, database="the database does not answer", broker="the broker does not answer")
            assert ask(service, "/healthz").status_code == 200


async def test_a_look_that_hangs_is_not_repeated():
    looks, go = [], threading.Event()

    def look() -> None:
        looks.append(threading.current_thread())
        assert go.wait(10)

    aside = DaemonCheck(look)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await aside()
    go.set()
    await aside()
    assert len(looks) == 1
    assert looks[0].daemon

    await aside()
    assert len(looks) == 2


async def test_what_a_look_raises_is_raised_to_every_waiter():
    def look() -> None:
        raise ConnectionRefusedError

    aside = DaemonCheck(look)
    found = await asyncio.gather(aside(), aside(), return_exceptions=True)
    assert [type(error) for error in found] == [ConnectionRefusedError, ConnectionRefusedError]
