"""Streams and long polls while the database or Valkey fails: events arrive late, but all of them, and clients stay connected."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from urllib.parse import urlsplit

import psycopg
import pytest

from api import sse
from tests.support.api_server import SECRET_KEY, Service, serving
from tests.support.event_stream import Frame, Stream, streaming
from tests.support.proxy import Proxy
from tests.support.servers import EmbeddedValkey, until


@pytest.fixture
def relay(database_url: str) -> Iterator[Proxy]:
    """Start a proxy between the API and its database."""
    with Proxy(urlsplit(database_url).port or 0) as made:
        yield made


@pytest.fixture
def far(relay: Proxy, database_url: str, valkey: EmbeddedValkey) -> Iterator[Service]:
    """Serve an API whose database is behind the proxy."""
    with serving(DATABASE_URL=relay.url(database_url), CELERY_BROKER_URL=valkey.url, secret_keys=SECRET_KEY) as made:
        yield made


@pytest.fixture
def own_valkey() -> Iterator[EmbeddedValkey]:
    """Start a server that the test may stop."""
    with EmbeddedValkey(None) as server:
        yield server


def next_event(events: Stream) -> Frame:
    """Return the next event of the log."""
    while (frame := events.frame()).event != "event":
        pass
    return frame


def test_stream_survives_an_unavailable_database(
    far: Service, relay: Proxy, database_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(sse, "RECHECK_KEY_S", 0.0)
    monkeypatch.setattr(sse, "KEEPALIVE_S", 0.0)
    with far.tenant("Acme") as acme:
        session = acme.session()
        with streaming(acme, session["id"]) as events:
            acme.message(session["id"], "one")
            assert next_event(events).id == "0"
            relay.take_down()
            try:
                with psycopg.connect(database_url, autocommit=True) as db:
                    events_json = '[{"kind": "status_update", "source": "system", "content": {"text": "two"}}]'
                    db.execute("SELECT append_events(%s, %s, NULL, 0, %s::jsonb)", (acme.workspace_id, session["id"], events_json))
                comments = 0
                while comments < 2:  # it was kept open for two more reads
                    comments += bool(events.frame().comment)
            finally:
                relay.heal()
            assert next_event(events).value["content"] == {"text": "two"}
    assert "Unexpected error" not in caplog.text


def test_events_are_found_without_realtime_messages(database_url: str, own_valkey: EmbeddedValkey):
    with (
        serving(DATABASE_URL=database_url, CELERY_BROKER_URL=own_valkey.url, secret_keys=SECRET_KEY) as service,
        service.tenant("Acme") as acme,
        ThreadPoolExecutor(1) as pool,
    ):
        session = acme.session()
        with streaming(acme, session["id"]) as events:
            acme.message(session["id"], "one")
            assert next_event(events).id == "0"
            own_valkey.stop()
            poll = pool.submit(acme.http.get, f"/v1/sessions/{session['id']}/events?after=0&wait=30")
            until(lambda: acme.subscription_count(session["id"]) == 2)
            acme.message(session["id"], "two")
            assert next_event(events).id == "1"
            assert [event["offset"] for event in poll.result().json()["events"]] == [1]


def test_shutdown_ends_streams_and_long_polls_while_valkey_hangs(database_url: str, own_valkey: EmbeddedValkey):
    pid = own_valkey.pid
    assert pid is not None
    with ExitStack() as clients, ThreadPoolExecutor(1) as pool:
        with serving(DATABASE_URL=database_url, CELERY_BROKER_URL=own_valkey.url, secret_keys=SECRET_KEY) as service:
            acme = clients.enter_context(service.tenant("Acme"))
            session = acme.session()
            streams = [clients.enter_context(streaming(acme, session["id"])) for _ in range(3)]
            poll = pool.submit(acme.http.get, f"/v1/sessions/{session['id']}/events?wait=60")
            until(lambda: acme.subscription_count(session["id"]) == 4)
            os.kill(pid, signal.SIGSTOP)
        os.kill(pid, signal.SIGCONT)
        # A long poll that the shutdown cut off would have no response.
        assert poll.result().json() == {"events": [], "next_after": -1}
        assert all(one.ended() for one in streams)
