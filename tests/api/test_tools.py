from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

import pytest

from store.encryption import SecretBox
from tests.support.api_server import SECRET_KEY, Tenant, serving

SCHEMA = {"type": "object", "properties": {"order": {"type": "integer"}}, "required": ["order"]}


def test_a_tool_is_unsafe_unless_it_says_otherwise(acme: Tenant):
    tool = acme.tool("orders_lookup", parameters=SCHEMA, description="Looks an order up.")

    assert (tool["effect"], tool["enabled"], tool["tool_type"], tool["parameters"]) == ("unsafe", True, "custom", SCHEMA)
    assert acme.call("GET", f"/v1/tools/{tool['id']}", 200) == tool
    assert acme.call("GET", "/v1/tools", 200)["items"] == [tool]


@pytest.mark.parametrize(
    ("field", "bad", "good"),
    [
        ("name", "orders.lookup", "orders-lookup_2"),
        ("name", "n" * 65, "n" * 64),
        ("name", "", "n"),
        ("name", "n\n", "n"),
        ("parameters", {"type": "string"}, SCHEMA),
        ("parameters", {"type": "object", "properties": {"a": {"type": "no such type"}}}, {"type": "object"}),
        ("parameters", {"type": "object", "$ref": "https://example.com/schema.json"}, SCHEMA),
        ("parameters", [], SCHEMA),
        ("return_schema", {"type": 3}, {"type": "array"}),
        ("effect", "harmless", "pure"),
        ("effect", None, "queryable"),
        ("display_name", "d" * 201, "d"),
        ("description", "d" * 2001, "d"),
        ("usage_guidelines", "g" * 5001, "g" * 5000),
        ("enabled", 1, False),
        ("error_handling", "none", {"retries": 0}),
        ("is_public", True, None),
    ],
)
def test_each_field_has_its_limits(acme: Tenant, field: str, bad: Any, good: Any):
    refused = acme.http.post("/v1/tools", json={"name": "lookup", field: bad})
    assert refused.status_code == 422, refused.text
    assert refused.json()["errors"][0]["where"].startswith(f"body.{field}")
    if good is not None:
        tool = acme.call("POST", "/v1/tools", 201, json={"name": "lookup", field: good})
        assert tool[field] == good
        assert acme.http.patch(f"/v1/tools/{tool['id']}", json={field: bad}).status_code == 422
        assert acme.call("PATCH", f"/v1/tools/{tool['id']}", 200, json={field: good})[field] == good


def test_a_name_is_taken_once_in_a_workspace(acme: Tenant, other: Tenant):
    acme.tool("lookup")
    second = acme.tool("second")
    other.tool("lookup")
    assert acme.call("POST", "/v1/tools", 409, json={"name": "lookup"})["code"] == "CONFLICT"
    assert acme.call("PATCH", f"/v1/tools/{second['id']}", 409, json={"name": "lookup"})["code"] == "CONFLICT"


def test_an_integration_is_named_after_its_address_and_tried_by_priority(acme: Tenant):
    path = f"/v1/tools/{acme.tool()['id']}/integrations"
    slow = acme.call("POST", path, 201, json={"integration_type": "custom_tool", "configuration": {"url": "https://slow.example/x"}})
    fast = acme.call(
        "POST",
        path,
        201,
        json={
            "integration_type": "custom_tool",
            "target_id": "fast",
            "configuration": {"url": "https://fast.example/{order}", "method": "GET"},
            "parameter_mapping": {"order": "order"},
            "response_mapping": "data",
            "priority": 5,
        },
    )
    assert (slow["target_id"], slow["health_status"], slow["secrets"]) == ("https://slow.example/x", "unknown", {})
    assert acme.call("GET", path, 200)["items"] == [fast, slow]
    again = {"integration_type": "custom_tool", "target_id": "fast", "configuration": {"url": "https://x.example"}}
    assert acme.call("POST", path, 409, json=again)["code"] == "CONFLICT"
    assert acme.call("PATCH", f"{path}/{slow['id']}", 409, json={"target_id": "fast"})["code"] == "CONFLICT"
    assert acme.call("DELETE", f"{path}/{fast['id']}", 204) is None
    assert acme.call("DELETE", f"{path}/{fast['id']}", 404)["code"] == "NOT_FOUND"
    assert acme.call("GET", path, 200)["items"] == [slow]


@pytest.mark.parametrize(
    "body",
    [
        {"configuration": {"url": "https://x.example"}},
        {"integration_type": "mcp_server", "configuration": {"url": "https://x.example"}},
        {"integration_type": "custom_tool"},
        {"integration_type": "custom_tool", "configuration": {}},
        {"integration_type": "custom_tool", "configuration": {"url": "ftp://x.example"}},
        {"integration_type": "custom_tool", "configuration": {"url": 3}},
        {"integration_type": "custom_tool", "configuration": {"url": "https://a..b/"}},
        {"integration_type": "custom_tool", "configuration": {"url": "https://x.example", "proxy": "http://y"}},
        {"integration_type": "custom_tool", "configuration": {"url": "https://x.example", "secret_headers": {"Authorization": "token"}}},
        {"integration_type": "custom_tool", "configuration": {"url": "https://x.example"}, "parameter_mapping": "orders["},
        {"integration_type": "custom_tool", "configuration": {"url": "https://x.example"}, "parameter_mapping": {"a": 3}},
        {"integration_type": "custom_tool", "configuration": {"url": "https://x.example"}, "response_mapping": ["a"]},
        {"integration_type": "custom_tool", "configuration": {"url": "https://x.example"}, "secrets": {"a b": "x"}},
        {"integration_type": "custom_tool", "configuration": {"url": "https://x.example"}, "secrets": {"a": ""}},
        {"integration_type": "custom_tool", "configuration": {"url": "https://x.example"}, "secrets": {"a": None}},
        {"integration_type": "custom_tool", "configuration": {"url": "https://x.example"}, "secrets": {f"s{n}": "x" for n in range(21)}},
        {"integration_type": "custom_tool", "configuration": {"url": "https://x.example"}, "priority": "high"},
        {"integration_type": "custom_tool", "configuration": {"url": "https://x.example"}, "health_status": "healthy"},
    ],
)
def test_an_integration_that_could_not_be_called_is_not_saved(acme: Tenant, body: dict[str, Any]):
    path = f"/v1/tools/{acme.tool()['id']}/integrations"
    assert acme.call("POST", path, 422, json=body)["code"] == "VALIDATION_ERROR"
    assert acme.call("GET", path, 200)["items"] == []


def test_secrets_are_written_sealed_and_never_read_back(acme: Tenant):
    tool = acme.tool()
    path = f"/v1/tools/{tool['id']}/integrations"
    configuration = {"url": "https://x.example", "secret_headers": {"Authorization": "Bearer {{token}}"}}
    made = acme.integration(tool["id"], configuration=configuration, secrets={"token": "hunter2hunter2", "spare": "swordfish"})

    assert made["secrets"] == {"token": {"set": True}, "spare": {"set": True}}
    changed = acme.http.patch(f"{path}/{made['id']}", json={"secrets": {"spare": None, "new": "correct horse"}, "enabled": False})
    assert changed.json()["secrets"] == {"token": {"set": True}, "new": {"set": True}}
    everything = changed.text + acme.http.get(path).text
    assert not any(secret in everything for secret in ("hunter2", "swordfish", "correct horse", "v1."))

    [(stored,)] = acme.service.sql("SELECT secrets FROM tool_integrations WHERE id = %s", made["id"])
    assert "hunter2" not in json.dumps(stored)
    assert SecretBox(SECRET_KEY).open(acme.workspace_id, UUID(made["id"]), "token", stored["token"]) == "hunter2hunter2"

    in_use = acme.call("PATCH", f"{path}/{made['id']}", 422, json={"secrets": {"token": None}})
    assert "'token'" in in_use["detail"]


def test_secrets_are_refused_in_a_sentence_where_the_operator_set_no_key(database_url: str, broker_url: str):
    with serving(DATABASE_URL=database_url, CELERY_BROKER_URL=broker_url) as service, service.tenant("Acme") as acme:
        path = f"/v1/tools/{acme.tool()['id']}/integrations"
        body = {"integration_type": "custom_tool", "configuration": {"url": "https://x.example"}, "secrets": {"a": "b"}}
        assert "TURNLINE_SECRET_KEYS" in acme.call("POST", path, 422, json=body)["detail"]


def test_an_integration_belongs_to_its_tool(acme: Tenant):
    tool, stranger = acme.tool("one"), acme.tool("two")
    made = acme.integration(tool["id"])
    for method in ("PATCH", "DELETE"):
        assert acme.http.request(method, f"/v1/tools/{stranger['id']}/integrations/{made['id']}", json={}).status_code == 404
    assert acme.call("PATCH", f"/v1/tools/{tool['id']}/integrations/{made['id']}", 200, json={}) == made
    assert acme.http.get(f"/v1/tools/{uuid4()}/integrations").status_code == 404


STATUS = {"url": "https://x.example/by-key/{idempotency_key}", "done": "state == 'paid'", "result": "refund"}


def test_a_queryable_tool_needs_integrations_that_can_be_asked(acme: Tenant):
    tool = acme.tool("refund", effect="queryable")
    path = f"/v1/tools/{tool['id']}/integrations"
    bare = {"url": "https://x.example"}
    refused = acme.call("POST", path, 422, json={"integration_type": "custom_tool", "configuration": bare})
    assert (
        refused["detail"] == "A queryable tool's integration needs `status` in its configuration: the request that asks if a call happened."
    )

    made = acme.integration(tool["id"], configuration=bare | {"status": STATUS})
    assert made["configuration"]["status"] == STATUS
    one = f"{path}/{made['id']}"
    acme.call("PATCH", one, 422, json={"configuration": bare})
    acme.call("PATCH", one, 200, json={"configuration": bare, "enabled": False})
    acme.call("PATCH", one, 422, json={"enabled": True})
    acme.call("PATCH", one, 200, json={"configuration": bare | {"status": STATUS}, "enabled": True})


def test_a_tool_does_not_become_queryable_while_an_integration_cannot_be_asked(acme: Tenant):
    tool = acme.tool("refund")
    made = acme.integration(tool["id"], configuration={"url": "https://x.example"})
    path = f"/v1/tools/{tool['id']}"
    assert "needs status" in acme.call("PATCH", path, 422, json={"effect": "queryable"})["detail"]
    assert acme.call("GET", path, 200)["effect"] == "unsafe"
    acme.call("PATCH", f"{path}/integrations/{made['id']}", 200, json={"enabled": False})
    assert acme.call("PATCH", path, 200, json={"effect": "queryable"})["effect"] == "queryable"


def test_a_status_names_secrets_that_are_given(acme: Tenant):
    tool = acme.tool("refund", effect="queryable")
    configuration = {"url": "https://x.example", "status": STATUS | {"secret_headers": {"Authorization": "Bearer {{token}}"}}}
    body = {"integration_type": "custom_tool", "configuration": configuration}
    path = f"/v1/tools/{tool['id']}/integrations"
    assert "'token'" in acme.call("POST", path, 422, json=body)["detail"]
    assert acme.call("POST", path, 201, json=body | {"secrets": {"token": "hunter2"}})["secrets"] == {"token": {"set": True}}
