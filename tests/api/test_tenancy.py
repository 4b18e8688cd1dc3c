"""Who may do what: every operation, tried with no key, a read key, and the key of another workspace."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from api.app import create_app
from tests.support.api_server import Service, Tenant, settings
from tests.support.waiting_turns import waiting

WRITES = {"POST", "PUT", "PATCH", "DELETE"}
OPEN = {"/healthz", "/readyz", "/metrics"}  # the last to this machine only: tests/api/test_metrics.py
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

    def ask(self, http: httpx.Client, ids: dict[str, str]) -> httpx.Response:
        """Call it on things that exist, with a body that will do."""
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


def _furnish(tenant: Tenant) -> dict[str, str]:
    """Make one of everything in a workspace: its id, by the names of path parameters."""
    agent, tool = tenant.agent(), tenant.tool()
    session = tenant.session(agent_id=agent["id"], title="Acme's")
    return {
        "agent_id": agent["id"],
        "tool_id": tool["id"],
        "integration_id": tenant.integration(tool["id"])["id"],
        "session_id": session["id"],
        "turn_id": tenant.message(session["id"])["turn"]["id"],
        "approval_id": waiting(tenant)["approval_id"],
        "budget_id": tenant.budget(scope="agent", scope_id=agent["id"])["id"],
    }


@dataclass(frozen=True)
class House:
    """A workspace with something in it, which no test here may change, and callers who try."""

    tenant: Tenant
    ids: dict[str, str]
    reader: httpx.Client
    former: httpx.Client
    """Whose user has no permission any more."""


@pytest.fixture(scope="module")
def house(service: Service) -> Iterator[House]:
    with service.tenant("Acme") as tenant:
        ((user_id,),) = service.sql("INSERT INTO users (name, email) VALUES ('Eve', 'eve@shop.example') RETURNING id")
        keys = tenant.key("read"), tenant.key("admin", user_id=user_id)
        with tenant.using(keys[0].text) as reader, tenant.using(keys[1].text) as former:
            yield House(tenant, _furnish(tenant), reader.http, former.http)


@pytest.fixture
def ids(acme: Tenant) -> dict[str, str]:
    """One of everything of a workspace of the test's own."""
    return _furnish(acme)


def test_the_lists_here_cover_every_operation():
    assert {str(operation) for operation in ALL} >= set(BODIES)
    assert len(GUARDED) >= 22
    assert {str(o) for o in GUARDED if o.method in WRITES - {"DELETE"}} == {*BODIES, "POST /v1/sessions"}


@pytest.mark.parametrize("header", [None, "Basic dTpw", "Bearer", "tl_00000000_x", "Bearer tl_0", f"Bearer tl_00000000_{'x' * 43}"])
def test_nobody_gets_in_without_a_key(header: str | None, house: House, service: Service):
    with httpx.Client(base_url=service.url, headers={"Authorization": header} if header else {}, trust_env=False) as stranger:
        for operation in GUARDED:
            answer = operation.ask(stranger, house.ids)

            assert answer.status_code == 401, operation
            assert answer.headers["www-authenticate"].startswith("Bearer ")
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["code"] == "UNAUTHORIZED"
            assert "tl_0000" not in answer.text


@pytest.mark.parametrize("operation", FINITE, ids=str)
def test_a_read_key_may_look_and_change_nothing(operation: Operation, house: House, service: Service):
    before = _everything(service, house.tenant)

    answer = operation.ask(house.reader, house.ids)

    if operation.method in WRITES:
        assert answer.status_code == 403
        assert answer.json()["detail"] == "Insufficient permissions for workspace."
        assert answer.json()["code"] == "ACCESS_DENIED"
    else:
        assert answer.status_code == 200
    assert _everything(service, house.tenant) == before


@pytest.mark.parametrize("operation", GUARDED, ids=str)
def test_a_key_whose_user_has_no_permission_any_more_may_not_even_look(operation: Operation, house: House):
    assert operation.ask(house.former, house.ids).status_code == 403


@pytest.mark.parametrize("operation", FINITE, ids=str)
def test_a_write_key_may_do_all_of_it(operation: Operation, acme: Tenant, ids: dict[str, str]):
    if operation.path.endswith("/redrive"):
        acme.service.sql("UPDATE turns SET status = 'dead' WHERE id = %s", ids["turn_id"])
    with acme.using(acme.key("write").text) as writer:
        answer = operation.ask(writer.http, ids)

    assert answer.is_success, answer.text


@pytest.mark.parametrize("operation", NAMED, ids=str)
def test_what_is_another_workspaces_is_not_found_and_stays_as_it_is(operation: Operation, house: House, other: Tenant, service: Service):
    before = _everything(service, house.tenant)

    answer = operation.ask(other.http, house.ids)

    assert answer.status_code == 404
    unknown = operation.ask(other.http, dict.fromkeys(house.ids, "01975e2e-0000-7000-8000-000000000000"))
    assert _said(unknown) == _said(answer), "it can be told from what is not there at all"
    assert _everything(service, house.tenant) == before


@pytest.mark.parametrize("path", ["/v1/agents", "/v1/tools", "/v1/sessions", "/v1/approvals", "/v1/budgets"])
def test_lists_show_nothing_of_another_workspace(path: str, acme: Tenant, other: Tenant, ids: dict[str, str]):
    assert len(acme.call("GET", path, 200)["items"]) >= 1
    assert other.call("GET", f"{path}?include_total=true", 200) == {"items": [], "next_cursor": None, "has_more": False, "total_count": 0}


def test_another_workspaces_ids_in_a_body_lead_nowhere(acme: Tenant, other: Tenant, ids: dict[str, str], service: Service):
    before = _everything(service, acme)
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
    assert _everything(service, acme) == before


def test_a_message_key_is_a_sessions_own(acme: Tenant, other: Tenant):
    first, second = acme.session(), other.session()

    one = acme.message(first["id"], "Hello", message_key="k")
    two = other.message(second["id"], "Something else", message_key="k")

    assert (one["event"]["offset"], two["event"]["offset"]) == (0, 0)
    assert one["event"]["id"] != two["event"]["id"]


def test_a_revoked_key_is_out_within_seconds(acme: Tenant, service: Service, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("api.auth.CACHE_S", 0.0)
    key = acme.key("write")
    with acme.using(key.text) as colleague:
        colleague.call("GET", "/v1/agents", 200)
        assert acme.revoke(key.id)
        colleague.call("GET", "/v1/agents", 401)


def _said(answer: httpx.Response) -> dict[str, Any]:
    return {name: value for name, value in answer.json().items() if name != "instance"}


def _everything(service: Service, tenant: Tenant) -> list[tuple[Any, ...]]:
    """All rows of the workspace but its keys, whose use is noted."""
    tables = ("agents", "tools", "tool_integrations", "agent_tools", "sessions", "turns", "events")
    passing = "'{dispatched_at,dispatch_count,updated_at}'::text[]"
    found = (service.sql(f"SELECT to_jsonb(t) - {passing} FROM {table} t WHERE workspace_id = %s", tenant.workspace_id) for table in tables)
    return sorted((row for rows in found for row in rows), key=str)
