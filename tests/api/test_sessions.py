from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from tests.support.api_server import Tenant


def test_new_session_has_the_documented_defaults(acme: Tenant):
    agent = acme.agent(model_name="gpt-4o")
    session = acme.session(agent_id=agent["id"])

    wanted: dict[str, object] = {
        "mode": "auto",
        "status": "active",
        "metadata": {},
        "variables": {},
        "session_type": "conversation",
        "locale": "en",
    }
    wanted |= {"timezone": "UTC", "event_count": 0, "message_count": 0, "cost_usd": "0", "user_id": None, "customer_id": None}
    assert {name: session[name] for name in wanted} == wanted
    assert session["agent"] == {"id": agent["id"], "name": "Ada", "model_provider": "openai", "model_name": "gpt-4o"}
    assert acme.call("GET", f"/v1/sessions/{session['id']}", 200) == session


@pytest.mark.parametrize(
    ("field", "bad", "good"),
    [
        ("customer_id", "c" * 101, "c" * 100),
        ("title", "t" * 201, "t" * 200),
        ("session_type", "party", "support"),
        ("locale", "english", "pt-BR"),
        ("locale", "E", "de"),
        ("timezone", "Mars/Olympus", "Europe/Berlin"),
        ("timezone", "../UTC", "America/New_York"),
        ("timezone", "t" * 51, "UTC"),
        ("metadata", [], {"a": {"b": [1, None, "ü"]}}),
        ("metadata", {"a": "x" * 66_000}, {}),
        ("variables", "x", {"tier": "gold"}),
        ("mode", "manual!", "paused"),
        ("user_id", "nobody", None),
        ("agent_id", "x", None),
        ("status", "completed", None),
    ],
)
def test_each_field_is_validated(acme: Tenant, field: str, bad: Any, good: Any):
    agent = acme.agent()
    refused = acme.http.post("/v1/sessions", json={"agent_id": agent["id"], field: bad})
    assert refused.status_code == 422, refused.text
    assert refused.json()["errors"][0]["where"] == f"body.{field}"
    if good is not None:
        assert acme.session(agent_id=agent["id"], **{field: good})[field] == good


def test_session_requires_an_active_agent_and_a_user_of_the_workspace(acme: Tenant):
    asleep = acme.agent(status="inactive")
    assert acme.call("POST", "/v1/sessions", 409, json={"agent_id": asleep["id"]})["detail"] == "Agent not found or inactive."
    assert acme.call("POST", "/v1/sessions", 404, json={"agent_id": str(uuid4())})["code"] == "NOT_FOUND"
    stranger = {"agent_id": acme.agent()["id"], "user_id": str(uuid4())}
    assert acme.call("POST", "/v1/sessions", 422, json=stranger)["code"] == "VALIDATION_ERROR"


def test_ending_a_session_is_idempotent(acme: Tenant):
    session = acme.session(metadata={"channel": "web"})
    path = f"/v1/sessions/{session['id']}"

    ended = acme.call("POST", f"{path}/end", 200, json={"reason": "solved"})
    again = acme.call("POST", f"{path}/end", 200, json={"reason": "other"})

    assert (ended["status"], ended["metadata"]) == ("completed", {"channel": "web", "end_reason": "solved"})
    assert again == ended
    assert acme.call("POST", f"{path}/messages", 409, json={"text": "One more thing"})["code"] == "CONFLICT"
    assert acme.call("POST", f"/v1/sessions/{acme.session()['id']}/end", 200)["status"] == "completed"
    assert acme.call("POST", f"/v1/sessions/{uuid4()}/end", 404)["code"] == "NOT_FOUND"


def test_list_is_filtered_and_paged(acme: Tenant):
    ada, bob = acme.agent(name="Ada"), acme.agent(name="Bob")
    with_ada = [acme.session(agent_id=ada["id"], customer_id="c1")["id"] for _ in range(3)]
    with_bob = acme.session(agent_id=bob["id"], customer_id="c2")["id"]
    acme.call("POST", f"/v1/sessions/{with_ada[0]}/end", 200)

    def ids(**query: Any) -> list[str]:
        return [session["id"] for session in acme.call("GET", "/v1/sessions", 200, params=query)["items"]]

    assert ids() == [with_bob, *with_ada[::-1]]
    assert ids(agent_id=bob["id"]) == ids(customer_id="c2") == [with_bob]
    assert ids(status="completed") == [with_ada[0]]
    first = acme.call("GET", "/v1/sessions", 200, params={"limit": 2, "customer_id": "c1", "include_total": True})
    assert (first["total_count"], first["has_more"]) == (3, True)
    assert ids(after=first["next_cursor"], customer_id="c1") == [with_ada[0]]
    for query in ("agent_id=x", "customer_id=%00", "status=open", "customer_id=" + "c" * 101):
        assert acme.http.get(f"/v1/sessions?{query}").status_code == 422


@pytest.mark.parametrize(
    ("bad", "good"), [([""], []), ([" "], ["a"]), (["t" * 51], ["t" * 50]), (["t"] * 21, ["t"] * 20), ("vip", ["vip"])]
)
def test_tags_are_validated_and_stored(acme: Tenant, bad: Any, good: Any):
    agent_id = acme.agent()["id"]

    assert acme.call("POST", "/v1/sessions", 422, json={"agent_id": agent_id, "tags": bad})["errors"][0]["where"].startswith("body.tags")
    made = acme.session(agent_id=agent_id, tags=good)
    assert made["tags"] == good
    assert acme.call("GET", f"/v1/sessions/{made['id']}", 200)["tags"] == good
