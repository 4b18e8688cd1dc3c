"""Listing approvals and deciding about them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest

from api.schemas import approvals as schemas
from tests.support.api_server import Tenant
from tests.support.fakes import Script, says
from tests.support.servers import until
from tests.support.waiting_turns import DONE, approval_by_tool, run_to_outcome, turn_awaiting_approval


def pending(acme: Tenant) -> list[str]:
    return [item["id"] for item in acme.call("GET", "/v1/approvals?status=pending", 200)["items"]]


def test_pending_approval_is_listed_and_approved_once(acme: Tenant):
    accepted = turn_awaiting_approval(acme)
    session_id, turn_id = accepted["event"]["session_id"], accepted["turn"]["id"]

    (shown,) = acme.call("GET", f"/v1/approvals?session_id={session_id}", 200)["items"]
    schemas.Approval.model_validate(shown)
    assert (shown["status"], shown["turn_id"], shown["tool_name"], shown["arguments"]) == ("pending", turn_id, "refund", {"order": 0})
    assert acme.call("GET", f"/v1/approvals/{shown['id']}", 200) == shown
    assert [one["id"] for one in acme.call("GET", f"/v1/turns/{turn_id}", 200)["approvals"]] == [shown["id"]]

    decided = acme.call("POST", f"/v1/approvals/{shown['id']}/decision", 200, json={"decision": "approve", "reason": "Checked."})
    assert (decided["status"], decided["reason"], decided["used_at"]) == ("approved", "Checked.", None)
    assert decided["decided_by"].startswith("first key (tl_")
    until(lambda: acme.service.sql("SELECT dispatched_at IS NOT NULL FROM turns WHERE id = %s", UUID(turn_id)) == [(True,)], 20)

    again = acme.call("POST", f"/v1/approvals/{shown['id']}/decision", 409, json={"decision": "deny"})
    assert again["detail"].startswith("It was approved before, by first key (tl_")

    run_to_outcome(acme, turn_id, Script(says("Done."), tools={"c0": DONE}))
    assert acme.call("GET", f"/v1/turns/{turn_id}", 200)["status"] == "done"
    assert acme.call("GET", f"/v1/approvals/{shown['id']}", 200)["used_at"] is not None
    assert pending(acme) == []


def test_request_and_decision_are_logged_and_published(acme: Tenant):
    accepted = turn_awaiting_approval(acme)
    session_id = accepted["event"]["session_id"]
    seen = acme.call("GET", f"/v1/sessions/{session_id}/events", 200)
    requested = seen["events"][-1]["content"]
    assert requested["status"] == "approval_requested"

    with acme.using(acme.key("write", None).text) as colleague, ThreadPoolExecutor(1) as pool:
        path = f"/v1/sessions/{session_id}/events?after={seen['next_after']}&wait=30"
        polled = pool.submit(lambda: acme.call("GET", path, 200)["events"])
        until(lambda: acme.subscription_count(session_id) == 1, 20)
        colleague.call("POST", f"/v1/approvals/{requested['approval_id']}/decision", 200, json={"decision": "deny", "reason": "Not paid."})
        (event,) = polled.result(40)

    assert event["kind"] == "status_update"
    content = event["content"]
    assert (content["status"], content["decision"], content["reason"]) == ("approval_decided", "denied", "Not paid.")
    assert content["approval_id"] == requested["approval_id"]
    assert content["decided_by"].startswith("tl_")
    assert content["decided_at"]


def test_decision_names_the_user_of_the_key(acme: Tenant):
    turn_awaiting_approval(acme)
    [(user_id,)] = acme.service.sql("INSERT INTO users (name, email) VALUES ('Dana', gen_random_uuid()::text) RETURNING id")
    grant = (
        "INSERT INTO permissions (workspace_id, user_id, entity_type, entity_id, permission_type) VALUES (%s, %s, 'workspace', %s, 'write')"
    )
    acme.service.sql(grant, acme.workspace_id, user_id, acme.workspace_id)

    with acme.using(acme.key("admin", user_id).text) as dana:
        decided = dana.call("POST", f"/v1/approvals/{pending(acme)[0]}/decision", 200, json={"decision": "approve"})

    assert decided["decided_by"].startswith(f"user {user_id}, tl_")


@pytest.mark.parametrize(
    ("body", "where", "what"),
    [
        ({"decision": "approve", "edited_arguments": {"order": "one"}}, "body.edited_arguments", "order"),
        ({"decision": "approve", "edited_arguments": {}}, "body.edited_arguments", "order"),
        ({"decision": "approve", "edited_arguments": [1]}, "body.edited_arguments", "dictionary"),
        ({"decision": "approve", "edited_arguments": {"order": 1, "note": "x" * 70_000}}, "body.edited_arguments", "65536"),
        ({"decision": "deny", "edited_arguments": {"order": 1}}, "body", "only with an approval"),
        ({"decision": "approved"}, "body.decision", "approve"),
        ({"decision": "deny", "reason": "x" * 2001}, "body.reason", "2000"),
        ({}, "body.decision", "required"),
    ],
)
def test_invalid_decision_is_refused_with_its_place(acme: Tenant, body: dict[str, object], where: str, what: str):
    turn_awaiting_approval(acme)
    (approval_id,) = pending(acme)

    refused = acme.call("POST", f"/v1/approvals/{approval_id}/decision", 422, json=body)

    assert refused["errors"][0]["where"] == where
    assert what in refused["errors"][0]["what"]
    assert pending(acme) == [approval_id]


def test_edited_arguments_are_shown_and_used(acme: Tenant):
    turn_id = turn_awaiting_approval(acme)["turn"]["id"]

    body = {"decision": "approve", "edited_arguments": {"order": 9}}
    decided = acme.call("POST", f"/v1/approvals/{pending(acme)[0]}/decision", 200, json=body)
    world = Script(says("Done."), tools={"c0": DONE})
    run_to_outcome(acme, turn_id, world)

    assert (decided["arguments"], decided["edited_arguments"]) == ({"order": 0}, {"order": 9})
    assert [call.arguments for call in world.made] == [{"order": 9}]


def test_only_one_of_two_concurrent_decisions_succeeds(acme: Tenant):
    turn_awaiting_approval(acme)
    path = f"/v1/approvals/{pending(acme)[0]}/decision"

    with ThreadPoolExecutor(2) as pool:
        codes = pool.map(lambda verdict: acme.http.post(path, json={"decision": verdict}).status_code, ("approve", "deny"))

    assert sorted(codes) == [200, 409]


def test_approvals_are_paged(acme: Tenant):
    turn_awaiting_approval(acme, count=5)
    first = acme.call("GET", "/v1/approvals?limit=2&include_total=true", 200)
    second = acme.call("GET", f"/v1/approvals?limit=3&after={first['next_cursor']}", 200)

    schemas.Approvals.model_validate(first)
    assert (len(first["items"]), first["total_count"], second["has_more"]) == (2, 5, False)
    assert len({item["id"] for item in first["items"] + second["items"]}) == 5
    acme.call("GET", "/v1/approvals?after=nonsense", 422)


def test_other_workspace_cannot_see_or_decide(acme: Tenant, other: Tenant):
    session_id = turn_awaiting_approval(acme)["event"]["session_id"]
    (approval_id,) = pending(acme)

    assert other.call("GET", f"/v1/approvals?session_id={session_id}", 200)["items"] == []
    other.call("GET", f"/v1/approvals/{approval_id}", 404)
    other.call("POST", f"/v1/approvals/{approval_id}/decision", 404, json={"decision": "approve"})
    with acme.using(acme.key("read").text) as reader:
        reader.call("POST", f"/v1/approvals/{approval_id}/decision", 403, json={"decision": "approve"})
        reader.call("GET", f"/v1/approvals/{approval_id}", 200)
    assert pending(acme) == [approval_id]


def test_assignment_decides_which_tools_require_approval(acme: Tenant):
    unsafe, pure = acme.tool("refund", effect="unsafe"), acme.tool("lookup", effect="pure")
    ids = [unsafe["id"], pure["id"]]
    agent = acme.agent(tool_ids=ids)
    path = f"/v1/agents/{agent['id']}/tools"

    assert approval_by_tool(acme, agent["id"]) == {"refund": True, "lookup": False}
    acme.call("PUT", path, 200, json={"tool_ids": ids, "configuration": {"approval": "required"}})
    assert approval_by_tool(acme, agent["id"]) == {"refund": True, "lookup": True}
    acme.call("PUT", path, 200, json={"tool_ids": ids, "configuration": {"approval": "never"}})
    assert approval_by_tool(acme, agent["id"]) == {"refund": False, "lookup": False}
    for bad in ("sometimes", None, True, ["required"]):
        refused = acme.call("PUT", path, 422, json={"tool_ids": ids, "configuration": {"approval": bad}})
        assert refused["errors"][0]["where"] == "body.configuration"
