"""Metrics of the API, and who may read them."""

from __future__ import annotations

import httpx
import pytest

from observability.metrics_access import refusal
from tests.support.api_server import SECRET_KEY, Service, Tenant, serving
from tests.support.prometheus_text import samples_of, scrape, value
from tests.support.servers import EmbeddedValkey, free_port, until

TOKEN = "prometheus-knows-it"


def test_requests_are_counted_by_route_and_not_by_path(service: Service, acme: Tenant):
    agent = acme.call("POST", "/v1/agents", 201, json={"name": "Ada"})
    acme.call("GET", f"/v1/agents/{agent['id']}", 200)
    acme.call("GET", "/v1/agents/01975e2e-0000-7000-8000-000000000000", 404)
    httpx.get(f"{service.url}/nowhere/at-all", trust_env=False)

    text = httpx.get(f"{service.url}/metrics", trust_env=False, timeout=20).raise_for_status().text
    found = samples_of(text)

    route = "/v1/agents/{agent_id}"
    assert value(found, "turnline_http_requests_total", method="GET", route=route, status="200") == 1
    assert value(found, "turnline_http_requests_total", method="GET", route=route, status="404") == 1
    assert value(found, "turnline_http_requests_total", method="GET", route="none", status="404") == 1
    assert value(found, "turnline_http_request_duration_seconds_count", method="GET", route=route) == 2
    assert agent["id"] not in text
    assert str(acme.workspace_id) not in text
    assert "at-all" not in text


def test_open_turns_of_all_workspaces_are_counted_and_cached(service: Service, acme: Tenant, other: Tenant):
    for tenant in (acme, other):
        agent = tenant.call("POST", "/v1/agents", 201, json={"name": "Ada"})
        session = tenant.call("POST", "/v1/sessions", 201, json={"agent_id": agent["id"]})
        tenant.call("POST", f"/v1/sessions/{session['id']}/messages", 202, json={"text": "Is order 41 paid?"})
    service.sql("UPDATE turns SET opened_at = opened_at - interval '90 seconds'")

    def counted() -> bool:
        found = scrape(f"{service.url}/metrics")
        age_s = value(found, "turnline_open_turns_oldest_age_seconds", status="queued") or 0
        return value(found, "turnline_open_turns", status="queued") == 2 and 90 <= age_s < 200

    until(counted, 20)
    found = scrape(f"{service.url}/metrics")
    assert value(found, "turnline_database_up") == 1
    assert value(found, "turnline_open_turns", status="running") == 0
    service.sql("DELETE FROM turns")
    assert value(scrape(f"{service.url}/metrics"), "turnline_open_turns", status="queued") == 2, "the database was read again at once"


def test_other_metrics_are_served_without_a_database(valkey: EmbeddedValkey):
    url = f"postgresql://nobody@127.0.0.1:{free_port()}/x"
    with serving(DATABASE_URL=url, CELERY_BROKER_URL=valkey.url, secret_keys=SECRET_KEY) as service:
        httpx.get(f"{service.url}/healthz", trust_env=False)
        found = scrape(f"{service.url}/metrics")

    assert value(found, "turnline_database_up") == 0
    assert value(found, "turnline_open_turns", status="queued") is None
    assert value(found, "turnline_http_requests_total", method="GET", route="/healthz", status="200") == 1


def test_request_through_a_proxy_needs_the_token(service: Service, database_url: str, valkey: EmbeddedValkey):
    refused = httpx.get(f"{service.url}/metrics", headers={"X-Forwarded-For": "127.0.0.1"}, trust_env=False)
    assert (refused.status_code, refused.json()["code"]) == (403, "ACCESS_DENIED")

    with serving(DATABASE_URL=database_url, CELERY_BROKER_URL=valkey.url, secret_keys=SECRET_KEY, metrics_token=TOKEN) as guarded:
        for wrong in ({}, {"Authorization": "Bearer nonsense"}, {"Authorization": f"Basic {TOKEN}"}):
            answer = httpx.get(f"{guarded.url}/metrics", headers=wrong, trust_env=False)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        found = scrape(f"{guarded.url}/metrics", Authorization=f"Bearer {TOKEN}", **{"X-Forwarded-For": "203.0.113.9"})
        assert value(found, "turnline_database_up") == 1


@pytest.mark.parametrize(
    ("peer", "status"),
    [
        ("127.0.0.1", None),
        ("::1", None),
        ("::ffff:127.0.0.1", None),
        ("10.0.0.4", 403),
        ("fe80::1%eth0", 403),
        ("", 403),
        ("testclient", 403),
    ],
)
def test_only_loopback_needs_no_token(peer: str, status: int | None):
    refused = refusal(peer, {}, "")

    assert (refused and refused[0]) == status
