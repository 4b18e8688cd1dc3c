"""Under load and failures: an unavailable database, many concurrent requests, an unexpected error."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support.api_server import SECRET_KEY, Service, Tenant, serving
from tests.support.proxy import Proxy
from tests.support.servers import EmbeddedValkey, until


@pytest.fixture(scope="module")
def relay(database_url: str) -> Iterator[Proxy]:
    """Start a proxy between the API and its database."""
    with Proxy(urlsplit(database_url).port or 0) as made:
        yield made


@pytest.fixture(scope="module")
def far(relay: Proxy, database_url: str, valkey: EmbeddedValkey) -> Iterator[Service]:
    """Serve an API whose database is behind the proxy."""
    with serving(DATABASE_URL=relay.url(database_url), CELERY_BROKER_URL=valkey.url, TURNLINE_SECRET_KEYS=SECRET_KEY) as made:
        yield made


def test_unavailable_database_returns_503_until_it_is_back(far: Service, relay: Proxy):
    with far.tenant("Acme") as acme:
        session, uncached = acme.session(), acme.key("read")
        body = {"text": "Is order 41 paid?", "message_key": "k"}
        path = f"/v1/sessions/{session['id']}/messages"
        assert acme.http.get("/v1/agents").status_code == 200  # this key is cached now, the other one is not
        relay.take_down()
        try:
            with acme.using(uncached.text) as unknown, ThreadPoolExecutor(4) as pool:
                asked = [
                    pool.submit(acme.http.get, "/v1/agents"),
                    pool.submit(acme.http.post, path, json=body),
                    pool.submit(unknown.http.get, f"/v1/sessions/{session['id']}"),
                    pool.submit(acme.http.get, f"/v1/sessions/{session['id']}/stream"),
                ]
                answers = [future.result() for future in asked]
            assert acme.http.get("/healthz").status_code == 200
        finally:
            relay.heal()

        for answer in answers:
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["code"] == "UNAVAILABLE"
            assert "psycopg" not in answer.text
            assert "127.0.0.1" not in answer.text
        until(lambda: acme.http.get("/v1/agents").status_code == 200, 20)
        until(lambda: acme.http.post(path, json=body).status_code == 202, 20)
        assert acme.call("GET", f"/v1/sessions/{session['id']}", 200)["message_count"] == 1


def test_concurrent_requests_with_a_new_key_share_one_lookup(acme: Tenant, service: Service, monkeypatch: pytest.MonkeyPatch):
    lookups = []
    look_up = type(service.app_state.keys)._look_up

    async def counting_look_up(keys, digest, key_text):
        lookups.append(digest)
        return await look_up(keys, digest, key_text)

    monkeypatch.setattr(type(service.app_state.keys), "_look_up", counting_look_up)
    with acme.using(acme.key("read").text) as colleague, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: colleague.http.get("/v1/agents?limit=1").status_code, range(64)))

    assert answers == [200] * 64
    assert len(lookups) == 1


def test_use_of_a_key_is_recorded_at_most_once_a_minute(acme: Tenant, service: Service):
    acme.call("GET", "/v1/agents", 200)

    def used():
        return service.sql("SELECT last_used_at FROM api_keys WHERE workspace_id = %s", acme.workspace_id)[0][0]

    until(used)
    first = used()
    acme.call("GET", "/v1/agents", 200)
    assert used() == first


def test_unexpected_error_is_logged_and_not_shown(acme: Tenant, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    async def broken(*_: object, **__: object) -> None:
        raise KeyError("".join(("hunter", "2")))  # not as a literal: a traceback quotes the line

    monkeypatch.setattr("store.catalog.agents.get", broken)
    with caplog.at_level(logging.ERROR):
        answer = acme.http.get("/v1/agents/01975e2e-0000-7000-8000-000000000000")

    assert answer.status_code == 500
    assert answer.json()["code"] == "INTERNAL_ERROR"
    assert "hunter2" not in answer.text
    assert "KeyError" not in answer.text
    assert "KeyError" in caplog.text
    assert "/v1/agents/{agent_id}" in caplog.text
    assert "in broken" in caplog.text
    assert "hunter2" not in caplog.text


def test_request_can_be_repeated_after_a_client_timeout(acme: Tenant, service: Service):
    session = acme.session()
    path = f"/v1/sessions/{session['id']}/messages"
    for number in range(10):
        body = {"text": f"Number {number}", "message_key": f"k{number}"}
        timeout_s = 0.002 * (number + 1)
        impatient = httpx.Client(base_url=service.url, headers=acme.http.headers, trust_env=False, timeout=timeout_s)
        with impatient, contextlib.suppress(httpx.TimeoutException):
            impatient.post(path, json=body)
        assert acme.http.post(path, json=body).status_code == 202

    events = acme.call("GET", f"/v1/sessions/{session['id']}/events", 200)["events"]
    assert [event["content"]["text"] for event in events] == [f"Number {number}" for number in range(10)]
