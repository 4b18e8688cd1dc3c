from __future__ import annotations

import concurrent.futures
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from tests.support.api_server import Tenant
from tests.support.servers import until


def test_new_agent_has_the_documented_defaults(acme: Tenant):
    answer = acme.http.post("/v1/agents", json={"name": "Ada"})

    agent = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/v1/agents/{agent['id']}"
    assert answer.headers["etag"] == '"1"'
    wanted = {"status": "active", "model_provider": "openai", "model_name": "gpt-4", "temperature": 70, "max_tokens": 2000}
    wanted |= {"conversation_style": "professional", "strategy": "coalesce", "allow_interruption": True, "data_retention_days": 30}
    assert {name: agent[name] for name in wanted} == wanted
    assert agent["total_cost"] == "0"
    assert acme.call("GET", f"/v1/agents/{agent['id']}", 200) == agent


@pytest.mark.parametrize(
    ("field", "bad", "good"),
    [
        ("name", "", "n"),
        ("name", " ", "n"),
        ("name", "n" * 101, "n" * 100),
        ("description", "d" * 501, "d" * 500),
        ("system_prompt", "p" * 5001, "p" * 5000),
        ("model_name", "", "m"),
        ("model_provider", "anthropic", "openai"),
        ("model_provider", "mystery", "openai"),
        ("temperature", -1, 0),
        ("temperature", 101, 100),
        ("temperature", 70.5, 70),
        ("temperature", "70", 70),
        ("temperature", True, 1),
        ("temperature", None, 1),
        ("max_tokens", 0, 1),
        ("max_tokens", 100_001, 100_000),
        ("max_tokens", 10**30, 100_000),
        ("data_retention_days", 0, 1),
        ("data_retention_days", 366, 365),
        ("conversation_style", "rude", "friendly"),
        ("strategy", "interject", "interrupt"),
        ("status", "asleep", "inactive"),
        ("allow_interruption", "yes", False),
        ("composition_mode", "loose", "strict"),
        ("workspace_id", "00000000-0000-4000-8000-000000000001", None),
        ("total_cost", 1, None),
    ],
)
def test_each_field_is_validated(acme: Tenant, field: str, bad: Any, good: Any):
    refused = acme.http.post("/v1/agents", json={"name": "Ada", field: bad})
    assert refused.status_code == 422, refused.text
    assert [error["where"] for error in refused.json()["errors"]] == [f"body.{field}"]
    if good is not None:
        agent = acme.call("POST", "/v1/agents", 201, json={"name": "Ada", field: good})
        assert agent[field] == good
        changed = acme.http.patch(f"/v1/agents/{agent['id']}", json={field: bad})
        assert changed.status_code == 422, changed.text


def test_unsupported_provider_is_refused_with_the_supported_ones(acme: Tenant):
    problem = acme.call("POST", "/v1/agents", 422, json={"name": "Ada", "model_provider": "anthropic"})
    assert "use openai" in problem["detail"]


def test_change_increments_the_version_and_changes_nothing_else(acme: Tenant):
    agent = acme.agent(description="Kind.", temperature=10)

    answer = acme.http.patch(f"/v1/agents/{agent['id']}", json={"temperature": 20, "system_prompt": "Be brief."})

    assert answer.headers["etag"] == '"2"'
    changed = answer.json()
    assert {name for name in agent if agent[name] != changed[name]} == {"temperature", "system_prompt", "version", "updated_at"}
    assert acme.call("PATCH", f"/v1/agents/{agent['id']}", 200, json={})["version"] == 2
    assert acme.call("PATCH", f"/v1/agents/{agent['id']}", 200, json={"description": None})["description"] is None


def test_if_match_changes_only_the_version_it_names(acme: Tenant):
    path = f"/v1/agents/{acme.agent()['id']}"

    def patch(tag: str) -> int:
        return acme.http.patch(path, json={"temperature": 1}, headers={"If-Match": tag}).status_code

    assert patch('"1"') == 200
    assert patch('"1"') == 412
    assert patch('W/"2"') == 412
    assert patch("2") == 412
    assert patch('"seven"') == 412
    assert patch('"1", "2"') == 200
    assert patch("*") == 200
    assert acme.http.delete(path, headers={"If-Match": '"3"'}).status_code == 412
    assert acme.http.put(f"{path}/tools", json={"tool_ids": []}, headers={"If-Match": '"3"'}).status_code == 412
    assert acme.call("GET", path, 200)["version"] == 4


def test_only_one_of_two_concurrent_changes_to_a_version_succeeds(acme: Tenant):
    agent = acme.agent()

    def patch(temperature: int) -> int:
        answer = acme.http.patch(f"/v1/agents/{agent['id']}", json={"temperature": temperature}, headers={"If-Match": '"1"'})
        return answer.status_code

    with psycopg.connect(acme.service.database_url) as db, concurrent.futures.ThreadPoolExecutor(2) as pool:
        db.execute("SELECT FROM agents WHERE id = %s FOR UPDATE", (agent["id"],))
        changes = [pool.submit(patch, temperature) for temperature in (1, 2)]
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        until(lambda: acme.service.sql(waiting) == [(2,)])
        db.rollback()
        assert sorted(change.result() for change in changes) == [200, 412]


def test_exactly_one_of_many_changes_to_a_version_succeeds(acme: Tenant):
    path = f"/v1/agents/{acme.agent()['id']}"
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        codes = pool.map(
            lambda number: acme.http.patch(path, json={"temperature": number}, headers={"If-Match": '"1"'}).status_code, range(8)
        )
        assert sorted(codes) == [200] + [412] * 7


def test_deleted_agent_is_not_found_and_deleting_is_idempotent(acme: Tenant):
    agent = acme.agent()
    session = acme.session(agent_id=agent["id"])
    path = f"/v1/agents/{agent['id']}"

    assert acme.call("DELETE", path, 204) is None
    assert acme.call("DELETE", path, 204) is None

    for method, body in (("GET", None), ("PATCH", {"temperature": 1})):
        assert acme.call(method, path, 404, json=body)["code"] == "NOT_FOUND"
    assert acme.call("GET", "/v1/agents", 200)["items"] == []
    assert acme.call("POST", "/v1/sessions", 404, json={"agent_id": agent["id"]})["detail"] == "Agent not found or inactive."
    assert acme.call("POST", f"/v1/sessions/{session['id']}/messages", 409, json={"text": "Still there?"})["code"] == "CONFLICT"
    assert acme.call("DELETE", f"/v1/agents/{uuid4()}", 404)["code"] == "NOT_FOUND"
    assert acme.service.sql("SELECT status, deleted_at IS NOT NULL FROM agents WHERE id = %s", agent["id"]) == [("archived", True)]


def test_list_is_filtered_by_status_and_by_literal_text(acme: Tenant):
    acme.agent(name="Orders 100%")
    acme.agent(name="orders_desk", status="inactive")
    acme.agent(name="Returns", description="Takes ORDERS back")

    def names(**query: str) -> set[str]:
        return {agent["name"] for agent in acme.call("GET", "/v1/agents", 200, params=query)["items"]}

    assert names() == {"Orders 100%", "orders_desk", "Returns"}
    assert names(search="orders") == {"Orders 100%", "orders_desk", "Returns"}
    assert names(search="%") == {"Orders 100%"}
    assert names(search="_") == {"orders_desk"}
    assert names(search="/") == set()
    assert names(status="inactive") == {"orders_desk"}
    assert names(status="active", search="order") == {"Orders 100%", "Returns"}


def test_pages_neither_skip_nor_repeat_while_agents_are_added(acme: Tenant):
    first = [acme.agent(name=f"a{number}")["id"] for number in range(7)]
    seen, cursor = [], None
    while True:
        page = acme.call("GET", "/v1/agents", 200, params={"limit": 3, "include_total": "true", **({"after": cursor} if cursor else {})})
        seen += [agent["id"] for agent in page["items"]]
        acme.agent(name="newcomer")
        cursor = page["next_cursor"]
        assert page["has_more"] is (cursor is not None)
        if cursor is None:
            break
    assert seen == first[::-1]
    assert page["total_count"] == 7 + 2
    assert "total_count" not in acme.call("GET", "/v1/agents", 200)


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=101",
        "limit=x",
        "limit=99999999999999999999",
        "after=x",
        "after=%00",
        "after=" + "A" * 32,
        "status=asleep",
        "search=%00",
        "search=" + "a" * 201,
        "include_total=perhaps",
    ],
)
def test_invalid_query_returns_422(acme: Tenant, query: str):
    answer = acme.http.get(f"/v1/agents?{query}")
    if query == "after=" + "A" * 32:  # a valid cursor, behind the last agent
        assert answer.json()["items"] == []
    else:
        assert (answer.status_code, answer.json()["code"]) == (422, "VALIDATION_ERROR")


def test_agents_created_at_the_same_time_have_a_stable_order(acme: Tenant):
    made = [acme.agent(name=f"a{number}")["id"] for number in range(5)]
    acme.service.sql("UPDATE agents SET created_at = now() WHERE workspace_id = %s", acme.workspace_id)
    seen, cursor = [], None
    for _ in made:
        page = acme.call("GET", "/v1/agents", 200, params={"limit": 1, **({"after": cursor} if cursor else {})})
        seen += [agent["id"] for agent in page["items"]]
        cursor = page["next_cursor"]
    assert (seen, cursor) == (sorted(made, reverse=True), None)


def test_agent_is_created_with_all_its_tools_or_not_at_all(acme: Tenant, other: Tenant):
    one, two = acme.tool("one")["id"], acme.tool("two")["id"]

    agent = acme.agent(default_tools=[two, one, two])
    listed = acme.call("GET", f"/v1/agents/{agent['id']}/tools", 200)["items"]
    assert [tool["name"] for tool in listed] == ["one", "two"]

    foreign = other.tool("theirs")["id"]
    problem = acme.call("POST", "/v1/agents", 422, json={"name": "Bob", "tool_ids": [one, foreign]})
    assert problem["detail"] == f"Some tools not found or not accessible: {foreign}."
    assert [agent["name"] for agent in acme.call("GET", "/v1/agents", 200)["items"]] == ["Ada"]
    assert acme.http.post("/v1/agents", json={"name": "Bob", "tool_ids": [one], "default_tools": [two]}).status_code == 422


def test_putting_tools_replaces_them(acme: Tenant):
    one, two, three = (acme.tool(name)["id"] for name in ("one", "two", "three"))
    path = f"/v1/agents/{acme.agent()['id']}/tools"

    acme.call("PUT", path, 200, json={"tool_ids": [one, two], "configuration": {"mode": "slow"}})
    answer = acme.http.put(path, json={"tool_ids": [three, two, three]})

    assert answer.headers["etag"] == '"3"'
    assert [(tool["name"], tool["configuration"]) for tool in answer.json()["items"]] == [("three", {}), ("two", {"mode": "slow"})]
    assert acme.call("PUT", path, 422, json={"tool_ids": [one, str(uuid4())]})["code"] == "VALIDATION_ERROR"
    assert acme.call("GET", path, 200) == answer.json()
    assert acme.call("PUT", path, 200, json={"tool_ids": []}) == {"items": []}
    assert acme.http.put(path, json={"tool_ids": ["x"]}).status_code == 422
    assert acme.http.put(path, json={"tool_ids": [str(uuid4()) for _ in range(101)]}).status_code == 422
