"""Limits on requests, problem documents, and authentication."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from tests.support.api_server import Tenant
from tests.support.servers import until

JSON = {"Content-Type": "application/json"}
MEMBERS = {"type", "title", "status", "detail", "instance", "code", "errors"}


def raw(acme: Tenant, body: Any, path: str = "/v1/agents", **headers: str) -> tuple[int, dict[str, Any]]:
    """Send a body unchanged; return the status and the problem."""
    answer = acme.http.post(path, content=body, headers=JSON | headers)
    assert answer.headers["content-type"] == ("application/problem+json" if answer.status_code >= 400 else "application/json")
    return answer.status_code, answer.json()


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        (b"{", 400, "character"),
        (b"", 422, "required"),
        (b"\xff\xfe", 400, "UTF-8"),
        (b'{"name": "\xe4"}', 400, "UTF-8"),
        (b'{"name": NaN}', 400, "NaN"),
        (b'{"name": Infinity}', 400, "Infinity"),
        (b'{"name": "x"} {}', 400, "character"),
        (b'{"name": 1e400}', 422, "too large"),
        (b"[]", 422, "valid"),
        (b"null", 422, "valid"),
        (b'"x"', 422, "valid"),
        (b"[" * 65 + b"]" * 65, 422, "deeper than 64"),
        (b"[" * 100_000, 422, "deeper than 64"),
        (b'{"a":' * 5_000 + b"1" + b"}" * 5_000, 422, "deeper than 64"),
        (json.dumps({"metadata": {str(number): 1 for number in range(10_001)}}).encode(), 422, "10,000 keys"),
        (b'{"name": ' + b"9" * 5_000 + b"}", 422, "characters"),
        (b'{"name": "\\u0000"}', 422, "U+0000"),
        (b'{"na\\u0000me": 1}', 422, "U+0000"),
        (b'{"name": "\\udfff"}', 422, "surrogate"),
        (b'{"\xe2\x80\xa8": 1, "name": "x"}', 422, "not permitted"),
    ],
)
def test_json_that_cannot_be_stored_is_refused_before_validation(acme: Tenant, body: bytes, status: int, word: str):
    got, problem = raw(acme, body)
    assert (got, problem["status"]) == (status, status), problem
    assert word in json.dumps(problem, ensure_ascii=False)


def test_too_long_body_is_refused_by_its_length_or_while_it_arrives(acme: Tenant):
    limit = acme.service.app_state.settings.request_max_bytes
    padded = b'{"name": "Ada"' + b" " * (limit - 15) + b"}"
    assert raw(acme, padded)[0] == 201
    assert raw(acme, padded + b" ")[0] == 413

    def endless() -> Iterator[bytes]:
        for _ in range(limit // 4096 + 2):
            yield b" " * 4096

    assert raw(acme, endless())[0] == 413
    for declared, answers in ((str(10**9), b"HTTP/1.1 413"), ("9" * 30, b"HTTP/1.1 4")):
        with socket.create_connection(("127.0.0.1", acme.service.port), 10) as client:
            head = f"POST /v1/agents HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {acme.api_key}\r\nContent-Length: {declared}\r\n\r\n"
            client.sendall(head.encode())
            answer = client.recv(100)
            assert answer.startswith(answers), answer


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "json", "application/jsonp"]
)
def test_other_content_types_return_415(acme: Tenant, kind: str):
    answer = acme.http.post("/v1/agents", content=b'{"name": "Ada"}', headers={"Content-Type": kind})
    assert (answer.status_code, answer.json()["code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "APPLICATION/JSON", "application/merge-patch+json"])
def test_every_json_content_type_is_accepted(acme: Tenant, kind: str):
    assert acme.http.post("/v1/agents", content=b'{"name": "Ada"}', headers={"Content-Type": kind}).status_code == 201


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "NOT_FOUND"),
        ("GET", "/v1/agents/", 404, "NOT_FOUND"),
        ("GET", "/%00%ff", 404, "NOT_FOUND"),
        ("DELETE", "/v1/agents", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/v1/agents/01975e2e-7d5b-7c3a-9f3e-5b1f6c2a9d10", 404, "NOT_FOUND"),
        ("GET", "/v1/agents/not-an-id", 422, "VALIDATION_ERROR"),
        ("GET", "/v1/agents/%00", 422, "VALIDATION_ERROR"),
        ("GET", "/v1/turns/'; DROP TABLE turns; --", 422, "VALIDATION_ERROR"),
        ("GET", "/v1/sessions?limit=9" + "9" * 400, 422, "VALIDATION_ERROR"),
    ],
)
def test_every_error_is_a_problem_document(acme: Tenant, method: str, path: str, status: int, code: str):
    answer = acme.http.request(method, path, follow_redirects=False)
    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, set(problem), problem["status"], problem["code"]) == (status, MEMBERS, status, code)
    assert problem["detail"].endswith(".")
    assert status != 405 or "GET" in answer.headers["allow"]


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Basic dTpw", "tl_x", "Bearer tl_x", "Bearer " + "tl_" + "x" * 10_000, "Bearer \xff"]
)
def test_missing_or_invalid_key_returns_401(acme: Tenant, header: str | None):
    del acme.http.headers["authorization"]
    headers = {} if header is None else {b"Authorization": header.encode("latin-1")}
    for method, path in (("GET", "/v1/agents"), ("POST", "/v1/agents"), ("GET", f"/v1/turns/{uuid4()}")):
        answer = acme.http.request(method, path, headers=headers, content=b"{" if method == "POST" else None)
        assert (answer.status_code, answer.json()["code"]) == (401, "UNAUTHORIZED")
        assert answer.headers["www-authenticate"].startswith("Bearer")


def test_use_of_a_key_is_recorded(acme: Tenant):
    acme.call("GET", "/v1/agents", 200)
    until(lambda: acme.service.sql("SELECT 1 FROM api_keys WHERE workspace_id = %s AND last_used_at IS NOT NULL", acme.workspace_id))


def test_revoked_key_is_refused_within_seconds(acme: Tenant):
    key = acme.key()
    with acme.using(key.text) as revoked:
        revoked.call("GET", "/v1/agents", 200)
        acme.revoke(key.id)
        until(lambda: revoked.http.get("/v1/agents").status_code == 401)
    acme.call("GET", "/v1/agents", 200)


def test_every_operation_describes_its_responses(acme: Tenant):
    schema = acme.call("GET", "/openapi.json", 200)

    assert schema["openapi"].startswith("3.1")
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            assert operation["description"]
            if path.startswith("/v1"):
                assert operation["security"] == [{"ApiKey": []}]
                assert {"401", "403", "404", "413", "422", "503"} <= set(operation["responses"])
                refusals = [answer for status, answer in operation["responses"].items() if status >= "400"]
                assert all(list(answer["content"]) == ["application/problem+json"] for answer in refusals)
    fields = schema["components"]["schemas"]["AgentCreate"]["properties"]
    assert fields["temperature"] | {"description": ""} == {
        **{"type": "integer", "minimum": 0, "maximum": 100, "default": 70, "title": "Temperature", "description": ""}
    }
    assert "default" not in schema["components"]["schemas"]["AgentChange"]["properties"]["temperature"]
