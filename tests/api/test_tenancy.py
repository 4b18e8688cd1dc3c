"""Authorization: every operation without a key, with a read key, and with a key of another workspace."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from api.app import create_app
from api.auth import CACHE_S
from tests.support.api_server import Service, Tenant, settings
from tests.support.servers import until
from tests.support.waiting_turns import turn_awaiting_approval

WRITES = {"POST", "PUT", "PATCH", "DELETE"}
OPEN = {"/healthz", "/readyz", "/metrics"}  # /metrics only for loopback, see tests/api/test_metrics.py
BODIES: dict[str, dict[str, Any]] = {
    "POST /v1/agents": {"name": "Eve"},
    "PATCH /v1/agents/{agent_id}": {"name": "Eve"},
    "PUT /v1/agents/{agent_id}/tools": {"tool_ids": []},
    "POST /v1/tools": {"name": "eve"},
    "PATCH /v1/tools/{tool_id}": {"description": "Eve's."},
    "POST /v1/tools/{tool_id}/integrations": {"integration_type": "custom_tool", "configuration": {"url": "https://eve.example/"}},
    "PATCH /v1/tools/{tool_id}/integrations/{integration_id}": {"enabled": False},
    "POST /v1/approvals/{approval_id}/decision": {"decision": "deny"},
    "POST /v1/budgets": {"scope": "workspace", "unit": "usd", "period": "day", "cap": "1"},
    "PATCH /v1/budgets/{budget_id}": {"cap": "2"},
    "POST /v1/sessions/{session_id}/end": {"reason": "Eve"},
    "POST /v1/sessions/{session_id}/messages": {"text": "Eve"},
    "POST /v1/sessions/{session_id}/cancel": {},
    "POST /v1/turns/{turn_id}/cancel": {},
    "POST /v1/turns/{turn_id}/redrive": {"from_scratch": False},
    "POST /v1/sessions/{session_id}/release": {},
    "PUT /v1/sessions/{session_id}/mode": {"mode": "manual"},
    "PUT /v1/sessions/{session_id}/hold": {"reason": "a dispute"},
    "PUT /v1/sessions/{session_id}/satisfaction": {"score": 4},
}


@dataclass(frozen=True)
class Operation:
    method: str
    path: str

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    def call(self, http: httpx.Client, ids: dict[str, str]) -> httpx.Response:
        """Call it on existing objects, with a valid body."""
        body = BODIES.get(str(self), {"agent_id": ids["agent_id"]} if str(self) == "POST /v1/sessions" else None)
        return http.request(self.method, self.path.format(**ids), json=body)


def _operations() -> list[Operation]:
    app = create_app(settings(DATABASE_URL="postgresql://127.0.0.1/x", CELERY_BROKER_URL="redis://127.0.0.1"))
    paths: dict[str, dict[str, Any]] = app.openapi()["paths"]
    return [Operation(method.upper(), path) for path, methods in paths.items() for method in methods]


ALL = _operations()
GUARDED = [operation for operation in ALL if operation.path not in OPEN]
FINITE = [operation for operation in GUARDED if not operation.path.endswith("/stream")]
NAMED = [operation for operation in GUARDED if "{" in operation.path]


def _create_objects(tenant: Tenant) -> dict[str, str]:
    """Create one of each object in a workspace; return their ids by path parameter."""
    agent, tool = tenant.agent(), tenant.tool()
    session = tenant.session(agent_id=agent["id"], title="Acme's")
    return {
        "agent_id": agent["id"],
        "tool_id": tool["id"],
        "integration_id": tenant.integration(tool["id"])["id"],
        "session_id": session["id"],
        "turn_id": tenant.message(session["id"])["turn"]["id"],
        "approval_id": turn_awaiting_approval(tenant)["approval_id"],
        "budget_id": tenant.budget(scope="agent", scope_id=agent["id"])["id"],
    }


@dataclass(frozen=True)
class Victim:
    """A workspace with objects that no test may change, and clients that try to."""

    tenant: Tenant
    ids: dict[str, str]
    reader: httpx.Client
    former: httpx.Client
    """With a key whose user has lost its permission."""


@pytest.fixture(scope="module")
def victim(service: Service) -> Iterator[Victim]:
    with service.tenant("Acme") as tenant:
        ((user_id,),) = service.sql("INSERT INTO users (name, email) VALUES ('Eve', 'eve@shop.example') RETURNING id")
        keys = tenant.key("read"), tenant.key("admin", user_id=user_id)
        with tenant.using(keys[0].text) as reader, tenant.using(keys[1].text) as former:
            yield Victim(tenant, _create_objects(tenant), reader.http, former.http)


@pytest.fixture
def ids(acme: Tenant) -> dict[str, str]:
    """Create one of each object in the test's own workspace."""
    return _create_objects(acme)


def test_lists_in_this_module_cover_every_operation():
    assert {str(operation) for operation in ALL} >= set(BODIES)
    assert len(GUARDED) >= 22
    assert {str(o) for o in GUARDED if o.method in WRITES - {"DELETE"}} == {*BODIES, "POST /v1/sessions"}


@pytest.mark.parametrize("header", [None, "Basic dTpw", "Bearer", "tl_00000000_x", "Bearer tl_0", f"Bearer tl_00000000_{'x' * 43}"])
def test_missing_or_invalid_key_returns_401(header: str | None, victim: Victim, service: Service):
    with httpx.Client(base_url=service.url, headers={"Authorization": header} if header else {}, trust_env=False) as stranger:
        for operation in GUARDED:
            answer = operation.call(stranger, victim.ids)

            assert answer.status_code == 401, operation
            assert answer.headers["www-authenticate"].startswith("Bearer ")
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["code"] == "UNAUTHORIZED"
            assert "tl_0000" not in answer.text


@pytest.mark.parametrize("operation", FINITE, ids=str)
def test_read_key_can_read_and_change_nothing(operation: Operation, victim: Victim, service: Service):
    before = _all_rows(service, victim.tenant)

    answer = operation.call(victim.reader, victim.ids)

    if operation.method in WRITES:
        assert answer.status_code == 403
        assert answer.json()["detail"] == "Insufficient permissions for workspace."
        assert answer.json()["code"] == "ACCESS_DENIED"
    else:
        assert answer.status_code == 200
    assert _all_rows(service, victim.tenant) == before


@pytest.mark.parametrize("operation", GUARDED, ids=str)
def test_key_of_a_user_without_permission_returns_403(operation: Operation, victim: Victim):
    assert operation.call(victim.former, victim.ids).status_code == 403


@pytest.mark.parametrize("operation", FINITE, ids=str)
def test_write_key_may_call_every_operation(operation: Operation, acme: Tenant, ids: dict[str, str]):
    if operation.path.endswith("/redrive"):
        acme.service.sql("UPDATE turns SET status = 'dead' WHERE id = %s", ids["turn_id"])
    with acme.using(acme.key("write").text) as writer:
        answer = operation.call(writer.http, ids)

    assert answer.is_success, answer.text


@pytest.mark.parametrize("operation", NAMED, ids=str)
def test_objects_of_another_workspace_return_404_and_stay_unchanged(operation: Operation, victim: Victim, other: Tenant, service: Service):
    before = _all_rows(service, victim.tenant)

    answer = operation.call(other.http, victim.ids)

    assert answer.status_code == 404
    unknown = operation.call(other.http, dict.fromkeys(victim.ids, "01975e2e-0000-7000-8000-000000000000"))
    assert _body_of(unknown) == _body_of(answer), "the response differs from the one for an unknown id"
    assert _all_rows(service, victim.tenant) == before


@pytest.mark.parametrize("path", ["/v1/agents", "/v1/tools", "/v1/sessions", "/v1/approvals", "/v1/budgets"])
def test_lists_show_nothing_of_another_workspace(path: str, acme: Tenant, other: Tenant, ids: dict[str, str]):
    assert len(acme.call("GET", path, 200)["items"]) >= 1
    assert other.call("GET", f"{path}?include_total=true", 200) == {"items": [], "next_cursor": None, "has_more": False, "total_count": 0}


def test_ids_of_another_workspace_in_a_body_are_refused(acme: Tenant, other: Tenant, ids: dict[str, str], service: Service):
    before = _all_rows(service, acme)
    mine = other.agent()

    assert other.call("POST", "/v1/sessions", 404, json={"agent_id": ids["agent_id"]})["detail"] == "Agent not found or inactive."
    refused = other.call("PUT", f"/v1/agents/{mine['id']}/tools", 422, json={"tool_ids": [ids["tool_id"]]})
    assert refused["detail"] == f"Some tools not found or not accessible: {ids['tool_id']}."
    assert other.call("GET", f"/v1/agents/{mine['id']}", 200) == mine
    own = other.tool()
    theirs = f"/v1/tools/{own['id']}/integrations/{ids['integration_id']}"
    other.call("PATCH", theirs, 404, json={"enabled": False})
    other.call("DELETE", theirs, 404)
    assert other.call("GET", f"/v1/sessions?agent_id={ids['agent_id']}", 200)["items"] == []
    assert _all_rows(service, acme) == before


def test_message_keys_are_scoped_to_their_session(acme: Tenant, other: Tenant):
    first, second = acme.session(), other.session()

    one = acme.message(first["id"], "Hello", message_key="k")
    two = other.message(second["id"], "Something else", message_key="k")

    assert (one["event"]["offset"], two["event"]["offset"]) == (0, 0)
    assert one["event"]["id"] != two["event"]["id"]


def test_revoked_key_returns_401_once_its_cache_entry_has_expired(acme: Tenant):
    key = acme.key("write")
    with acme.using(key.text) as colleague:
        colleague.call("GET", "/v1/agents", 200)
        assert acme.revoke(key.id)
        until(lambda: colleague.http.get("/v1/agents").status_code == 401, CACHE_S + 5)


def _body_of(answer: httpx.Response) -> dict[str, Any]:
    return {name: value for name, value in answer.json().items() if name != "instance"}


def _all_rows(service: Service, tenant: Tenant) -> list[tuple[Any, ...]]:
    """Return all rows of the workspace except its keys, whose use is recorded."""
    tables = ("agents", "tools", "tool_integrations", "agent_tools", "sessions", "turns", "events")
    changing = "'{dispatched_at,dispatch_count,updated_at}'::text[]"
    found = (
        service.sql(f"SELECT to_jsonb(t) - {changing} FROM {table} t WHERE workspace_id = %s", tenant.workspace_id) for table in tables
    )
    return sorted((row for rows in found for row in rows), key=str)
