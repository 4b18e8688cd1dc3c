"""The OpenAPI document, and the Allow header."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from api.schemas.agents import AgentCreate
from api.schemas.common import RequestBody
from api.schemas.messages import MessageCreate
from api.schemas.sessions import ModeChange, SessionCreate
from api.schemas.tools import IntegrationCreate, ToolCreate
from tests.support.api_server import Service, Tenant


@pytest.fixture(scope="module")
def described(service: Service) -> dict[str, Any]:
    document: dict[str, Any] = service.app.openapi()
    return document


def _operations(described: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            if path.startswith("/v1"):
                yield f"{method.upper()} {path}", operation


def test_document_is_openapi_3_1_and_every_operation_requires_a_key(described: dict[str, Any], acme: Tenant):
    assert described == acme.call("GET", "/openapi.json", 200)
    assert described["openapi"] == "3.1.0"
    assert described["components"]["securitySchemes"]["ApiKey"] | {"description": ""} == {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "tl_…",
        "description": "",
    }
    names = [operation["operationId"] for _, operation in _operations(described)]
    assert len(set(names)) == len(names) >= 22
    for name, operation in _operations(described):
        assert operation["security"] == [{"ApiKey": []}], name
        assert operation["description"], name


def test_every_error_is_described_as_a_problem(described: dict[str, Any]):
    for name, operation in _operations(described):
        refusals = {status: answer for status, answer in operation["responses"].items() if status >= "4"}
        assert {"401", "403", "404", "422", "503"} <= set(refusals), name
        for answer in refusals.values():
            assert answer["content"] == {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}, name
            assert answer["description"], name


def test_limits_of_fields_are_in_the_document(described: dict[str, Any]):
    fields = described["components"]["schemas"]["AgentCreate"]["properties"]

    assert (fields["name"]["minLength"], fields["name"]["maxLength"]) == (1, 100)
    assert (fields["temperature"]["minimum"], fields["temperature"]["maximum"], fields["temperature"]["default"]) == (0, 100, 70)
    assert (fields["max_tokens"]["minimum"], fields["max_tokens"]["maximum"]) == (1, 100_000)
    assert (fields["data_retention_days"]["minimum"], fields["data_retention_days"]["maximum"]) == (1, 365)
    assert fields["description"]["anyOf"][0]["maxLength"] == 500
    assert fields["system_prompt"]["anyOf"][0]["maxLength"] == 5000
    assert described["components"]["schemas"]["SessionCreate"]["properties"]["timezone"]["maxLength"] == 50


@pytest.mark.parametrize(
    "body",
    [
        AgentCreate,
        ToolCreate,
        IntegrationCreate,
        SessionCreate,
        MessageCreate,
        ModeChange,
    ],
)
def test_examples_are_valid(body: type[RequestBody], described: dict[str, Any]):
    (example,) = described["components"]["schemas"][body.__name__]["examples"]

    body.model_validate(example)
    schema = {"$ref": f"#/components/schemas/{body.__name__}", "components": described["components"]}
    jsonschema.validate(example, schema, jsonschema.Draft202012Validator)


def test_examples_can_be_sent_in_sequence(described: dict[str, Any], acme: Tenant):
    bodies = {name: schema["examples"][0] for name, schema in described["components"]["schemas"].items() if "examples" in schema}

    tool = acme.call("POST", "/v1/tools", 201, json=bodies["ToolCreate"])
    acme.call("POST", f"/v1/tools/{tool['id']}/integrations", 201, json=bodies["IntegrationCreate"])
    agent = acme.call("POST", "/v1/agents", 201, json=bodies["AgentCreate"] | {"tool_ids": [tool["id"]]})
    session = acme.call("POST", "/v1/sessions", 201, json=bodies["SessionCreate"] | {"agent_id": agent["id"]})
    acme.call("POST", f"/v1/sessions/{session['id']}/messages", 202, json=bodies["MessageCreate"])
    acme.call("PUT", f"/v1/sessions/{session['id']}/mode", 200, json=bodies["ModeChange"])


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/agents", "GET, POST"),
        ("POST", "/v1/agents/{id}", "DELETE, GET, PATCH"),
        ("DELETE", "/v1/agents/{id}/tools", "GET, PUT"),
        ("PUT", "/v1/tools/{id}/integrations/{id}", "DELETE, PATCH"),
        ("GET", "/v1/sessions/{id}/messages", "POST"),
        ("DELETE", "/healthz", "GET"),
    ],
)
def test_wrong_method_returns_405_with_the_allowed_methods(method: str, path: str, allowed: str, acme: Tenant):
    answer = acme.http.request(method, path.format(id="01975e2e-0000-7000-8000-000000000000"))

    assert answer.status_code == 405
    assert answer.headers["allow"] == allowed
    assert answer.json()["code"] == "METHOD_NOT_ALLOWED"
