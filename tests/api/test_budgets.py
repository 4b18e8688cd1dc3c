"""Budgets: create, list, change and delete them; turns over budget fail."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from api.schemas import budgets as schemas
from tests.support.api_server import Tenant
from tests.support.fakes import Script, says
from tests.support.waiting_turns import run_to_outcome


def test_budget_is_created_listed_changed_and_deleted(acme: Tenant):
    made = acme.budget(period="day", cap="25.50")

    schemas.Budget.model_validate(made)
    assert (made["scope"], made["scope_id"], made["cap"], made["spent"], made["reserved"]) == (
        "workspace",
        str(acme.workspace_id),
        "25.5",
        "0",
        "0",
    )
    assert made["day"] in {str(datetime.now(UTC).date()), made["created_at"][:10]}
    assert acme.call("GET", f"/v1/budgets/{made['id']}", 200) == made
    assert acme.call("GET", "/v1/budgets?scope=workspace", 200)["items"] == [made]
    assert acme.call("GET", "/v1/budgets?scope=agent", 200)["items"] == []
    assert acme.budget(period="total")["day"] is None
    changed = acme.call("PATCH", f"/v1/budgets/{made['id']}", 200, json={"cap": "0.0000000001"})
    assert changed["cap"] == "0.0000000001"
    acme.call("DELETE", f"/v1/budgets/{made['id']}", 204)
    acme.call("DELETE", f"/v1/budgets/{made['id']}", 404)


def test_duplicate_budget_returns_409(acme: Tenant):
    acme.budget()

    again = {"scope": "workspace", "scope_id": str(acme.workspace_id), "unit": "usd", "period": "total", "cap": "1"}
    assert "already" in acme.call("POST", "/v1/budgets", 409, json=again)["detail"]
    acme.budget(unit="tokens", cap=1000)
    acme.budget(period="day")
    acme.budget(scope="agent", scope_id=acme.agent()["id"])


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"cap": "-1"}, "body.cap"),
        ({"cap": 1.5}, "body.cap"),
        ({"cap": "1e3"}, "body.cap"),
        ({"cap": "12345678901"}, "body.cap"),
        ({"cap": "0.00000000001"}, "body.cap"),
        ({"cap": "NaN"}, "body.cap"),
        ({"cap": True}, "body.cap"),
        ({"cap": 10**10}, None),
        ({"cap": -1}, None),
        ({"unit": "tokens", "cap": "1.5"}, None),
        ({"unit": "euros"}, "body.unit"),
        ({"period": "month"}, "body.period"),
        ({"scope": "agent"}, None),
        ({"spent": "1"}, "body.spent"),
    ],
)
def test_invalid_budget_returns_422(acme: Tenant, fields: dict[str, Any], where: str | None):
    body = {"scope": "workspace", "unit": "usd", "period": "total", "cap": "10"} | fields

    refused = acme.call("POST", "/v1/budgets", 422, json=body)

    assert where is None or refused["errors"][0]["where"].startswith(where)
    assert acme.call("GET", "/v1/budgets", 200)["items"] == []


def test_unknown_scope_id_returns_404(acme: Tenant, other: Tenant):
    body = {"unit": "usd", "period": "total", "cap": "10"}
    mine, theirs = acme.session(), other.session()

    acme.budget(scope="session", scope_id=mine["id"])
    for scope, scope_id in (
        ("session", theirs["id"]),
        ("agent", theirs["agent_id"]),
        ("agent", mine["id"]),
        ("session", str(uuid4())),
        ("workspace", str(other.workspace_id)),
    ):
        acme.call("POST", "/v1/budgets", 404, json=body | {"scope": scope, "scope_id": scope_id})


def test_turn_over_budget_fails_and_the_next_succeeds_with_a_higher_cap(acme: Tenant):
    budget = acme.budget(unit="tokens", cap=10)
    session_id = acme.session()["id"]
    world = Script(says("Yes."))

    failed = acme.message(session_id)["turn"]["id"]
    run_to_outcome(acme, failed, world)
    error = acme.call("GET", f"/v1/turns/{failed}", 200)["error"]
    assert error["class"] == "BudgetSpent"
    assert error["detail"].startswith("The workspace's total budget of 10 tokens is spent: 0 tokens spent, 0 tokens reserved, ")
    status = acme.call("GET", f"/v1/sessions/{session_id}/events", 200)["events"][-1]
    assert (status["kind"], status["content"]["status"]) == ("status_update", "failed")
    assert "a limit on what may be spent" in status["content"]["text"]
    assert world.requests == []

    acme.call("PATCH", f"/v1/budgets/{budget['id']}", 200, json={"cap": 100_000})
    done = acme.message(session_id, "And now?")["turn"]["id"]
    run_to_outcome(acme, done, world)
    assert acme.call("GET", f"/v1/turns/{done}", 200)["status"] == "done"
    spent = acme.call("GET", f"/v1/budgets/{budget['id']}", 200)
    assert (spent["spent"], spent["reserved"]) == ("15", "0")
