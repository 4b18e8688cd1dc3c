"""Whatever is sent, the answers are the ones that OpenAPI describes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck
from hypothesis import settings as examples
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from api.app import create_app
from tests.api.service import Service, settings

CHECKS = [not_a_server_error, status_code_conformance, response_schema_conformance, content_type_conformance]
# Nothing is opened here; the addresses only let the application be made, so that it can describe itself.
SCHEMA = schemathesis.openapi.from_dict(
    create_app(settings(DATABASE_URL="postgresql://127.0.0.1/x", CELERY_BROKER_URL="redis://127.0.0.1")).openapi()
)


@pytest.fixture(scope="module")
def ids(service: Service) -> Iterator[dict[str, str]]:
    """Things that exist, by the names of path parameters, and the key to them."""
    with service.tenant("Acme") as acme:
        agent, tool = acme.agent(), acme.tool()
        session = acme.session(agent_id=agent["id"])
        message = acme.message(session["id"])
        yield {
            "key": acme.api_key,
            "agent_id": agent["id"],
            "tool_id": tool["id"],
            "integration_id": acme.integration(tool["id"])["id"],
            "session_id": session["id"],
            "turn_id": message["turn"]["id"],
        }


@pytest.fixture(scope="module")
def http() -> Iterator[requests.Session]:
    with requests.Session() as made:
        made.trust_env = False
        yield made


@SCHEMA.parametrize()
@examples(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_answers_are_as_described(case: Any, service: Service, ids: dict[str, str], http: requests.Session):
    _lead_somewhere(case, ids)
    case.call_and_validate(
        base_url=service.url, session=http, headers={"Authorization": f"Bearer {ids['key']}"}, checks=CHECKS, timeout=20
    )


def _lead_somewhere(case: Any, ids: dict[str, str]) -> None:
    """Let two of three well-formed ids be those of things that exist; a stream of what exists would have no end."""
    if case.operation.path.endswith("/stream"):
        return
    for name, value in (case.path_parameters or {}).items():
        try:
            number = UUID(str(value)).int
        except ValueError:
            continue
        if number % 3:
            case.path_parameters[name] = ids[name]
            if "wait" in (case.query or {}):
                del case.query["wait"]  # there is nobody to end the wait
