"""Streams and long polls while what is behind them fails: lines come late, but all of them, and nobody is sent away."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from urllib.parse import urlsplit

import psycopg
import pytest

from api.routes import stream
from tests.support.api_server import SECRET_KEY, Service, serving
from tests.support.event_stream import Frame, Stream, streaming
from tests.support.proxy import Proxy
from tests.support.servers import EmbeddedValkey, until


@pytest.fixture
def relay(database_url: str) -> Iterator[Proxy]:
    """What stands between the API and its database."""
    with Proxy(urlsplit(database_url).port or 0) as made:
        yield made


@pytest.fixture
def far(relay: Proxy, database_url: str, valkey: EmbeddedValkey) -> Iterator[Service]:
    """An API whose database is behind the relay."""
    with serving(DATABASE_URL=relay.url(database_url), CELERY_BROKER_URL=valkey.url, secret_keys=SECRET_KEY) as made:
        yield made


@pytest.fixture
def own_valkey() -> Iterator[EmbeddedValkey]:
    """A server of this test, which it may stop."""
    with EmbeddedValkey(None) as server:
        yield server


def line(events: Stream) -> Frame:
    """The next line of the log."""
    while (frame := events.frame()).event != "event":
        pass
    return frame


def test_a_stream_outlives_its_database_s_absence(
    far: Service, relay: Proxy, database_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(stream, "RECHECK_S", 0.0)
    monkeypatch.setattr(stream, "KEEPALIVE_S", 0.0)
    with far.tenant("Acme") as acme:
        session = acme.session()
        with streaming(acme, session["id"]) as events:
            acme.message(session["id"], "one")
            assert line(events).id == "0"
            relay.take_down()
            try:
                with psycopg.connect(database_url, autocommit=True) as db:
                    said = '[{"kind": "status_update", "source": "system", "content": {"text": "two"}}]'
                    db.execute("SELECT append_events(%s, %s, NULL, 0, %s::jsonb)", (acme.workspace_id, session["id"], said))
                comments = 0
                while comments < 2:  # it went on for two more looks
                    comments += bool(events.frame().comment)
            finally:
                relay.heal()
            assert line(events).value["content"] == {"text": "two"}
    assert "a bug" not in caplog.text


def test_without_passing_news_lines_are_found_by_looking(database_url: str, own_valkey: EmbeddedValkey):
    with (
        serving(DATABASE_URL=database_url, CELERY_BROKER_URL=own_valkey.url, secret_keys=SECRET_KEY) as service,
        service.tenant("Acme") as acme,
        ThreadPoolExecutor(1) as pool,
    ):
        session = acme.session()
        with streaming(acme, session["id"]) as events:
            acme.message(session["id"], "one")
            assert line(events).id == "0"
            own_valkey.stop()
            poll = pool.submit(acme.http.get, f"/v1/sessions/{session['id']}/events?after=0&wait=30")
            until(lambda: acme.watched(session["id"]) == 2)
            acme.message(session["id"], "two")
            assert line(events).id == "1"
            assert [event["offset"] for event in poll.result().json()["events"]] == [1]


def test_a_stop_answers_streams_and_long_polls_while_valkey_hangs(database_url: str, own_valkey: EmbeddedValkey):
    pid = own_valkey.pid
    assert pid is not None
    with ExitStack() as clients, ThreadPoolExecutor(1) as pool:
        with serving(DATABASE_URL=database_url, CELERY_BROKER_URL=own_valkey.url, secret_keys=SECRET_KEY) as service:
            acme = clients.enter_context(service.tenant("Acme"))
            session = acme.session()
            streams = [clients.enter_context(streaming(acme, session["id"])) for _ in range(3)]
            poll = pool.submit(acme.http.get, f"/v1/sessions/{session['id']}/events?wait=60")
            until(lambda: acme.watched(session["id"]) == 4)
            os.kill(pid, signal.SIGSTOP)
        os.kill(pid, signal.SIGCONT)
        # A poll that the stop had cut off would have no answer.
        assert poll.result().json() == {"events": [], "next_after": -1}
        assert all(one.ended() for one in streams)
