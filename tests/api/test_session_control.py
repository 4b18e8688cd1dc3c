"""Cancelling, modes, strategies and messages of people over HTTP. No worker runs here."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from api.schemas import messages, sessions, turns
from tests.support.api_server import Tenant
from tests.support.servers import until


def key_of(acme: Tenant) -> str:
    """Return the caller's key as the log shows it."""
    ((name, prefix),) = acme.service.sql("SELECT name, prefix FROM api_keys WHERE workspace_id = %s", acme.workspace_id)
    return f"{name} ({prefix})"


def claim(acme: Tenant, turn_id: str, lease_s: float = 60.0) -> None:
    """Claim the turn as a worker does."""
    acme.service.sql("SELECT claim_turn(%s, 'a worker', %s, 5, 400)", UUID(turn_id), lease_s)


def log(acme: Tenant, session_id: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = acme.call("GET", f"/v1/sessions/{session_id}/events", 200)["events"]
    return events


def test_queued_turn_is_cancelled_at_once_and_logged(acme: Tenant):
    session_id = acme.session()["id"]
    turn_id = acme.message(session_id)["turn"]["id"]

    answer = acme.call("POST", f"/v1/turns/{turn_id}/cancel", 202)

    turns.Cancelled.model_validate(answer)
    assert answer == {"status": "cancelled", "session_id": session_id, "turn_id": turn_id}
    turn = acme.call("GET", f"/v1/turns/{turn_id}", 200)
    turns.Turn.model_validate(turn)
    assert (turn["status"], turn["error"]["class"], turn["cancelled_by"]) == ("cancelled", "Cancelled", key_of(acme))
    assert turn["cancel_requested_at"] is not None
    event = log(acme, session_id)[-1]
    assert (event["kind"], event["turn_id"], event["content"]["status"]) == ("status_update", turn_id, "cancelled")
    assert event["content"]["by"] == key_of(acme)
    again = acme.call("POST", f"/v1/turns/{turn_id}/cancel", 202)
    assert (again["status"], len(log(acme, session_id))) == ("settled", 2)


def test_cancelling_a_running_turn_is_requested_once(acme: Tenant):
    session_id = acme.session()["id"]
    turn_id = acme.message(session_id)["turn"]["id"]
    claim(acme, turn_id)

    first = acme.call("POST", f"/v1/turns/{turn_id}/cancel", 202)
    asked_at = acme.call("GET", f"/v1/turns/{turn_id}", 200)["cancel_requested_at"]
    again = acme.call("POST", f"/v1/sessions/{session_id}/cancel", 202)

    assert (first["status"], again["status"], again["turn_id"]) == ("cancelling", "cancelling", None)
    turn = acme.call("GET", f"/v1/turns/{turn_id}", 200)
    assert (turn["status"], turn["cancel_requested_at"]) == ("running", asked_at)
    [call] = turn["model_calls"]
    assert (call["state"], call["estimated"]) == ("reserved", False)


def test_turn_with_an_expired_lease_is_cancelled_at_once(acme: Tenant):
    session_id = acme.session()["id"]
    turn_id = acme.message(session_id)["turn"]["id"]
    claim(acme, turn_id, lease_s=0.01)
    until(lambda: acme.service.sql("SELECT 1 FROM sessions WHERE id = %s AND lease_until < now()", UUID(session_id)))

    assert acme.call("POST", f"/v1/turns/{turn_id}/cancel", 202)["status"] == "cancelled"

    turn = acme.call("GET", f"/v1/turns/{turn_id}", 200)
    assert (turn["status"], turn["model_calls"][0]["state"]) == ("cancelled", "unknown")


def test_cancelling_a_turn_dispatches_the_next_and_cancelling_a_session_ends_all(acme: Tenant):
    session_id = acme.session()["id"]
    turns = [acme.message(session_id, f"m{number}", strategy="enqueue")["turn"]["id"] for number in range(3)]

    def dispatched() -> set[str]:
        found = acme.service.sql("SELECT id FROM turns WHERE session_id = %s AND dispatched_at IS NOT NULL", UUID(session_id))
        return {str(turn_id) for (turn_id,) in found}

    until(lambda: dispatched() == set(turns[:1]))
    acme.call("POST", f"/v1/turns/{turns[0]}/cancel", 202)
    until(lambda: dispatched() == set(turns[:2]))
    assert acme.call("POST", f"/v1/sessions/{session_id}/cancel", 202)["status"] == "cancelled"

    statuses = [acme.call("GET", f"/v1/turns/{turn_id}", 200)["status"] for turn_id in turns]
    assert statuses == ["cancelled"] * 3
    assert acme.call("POST", f"/v1/sessions/{session_id}/cancel", 202)["status"] == "settled"
    assert acme.message(session_id, "and now?")["turn"]["status"] == "queued"


@pytest.mark.parametrize("path", ["/v1/sessions/{session_id}/cancel", "/v1/turns/{turn_id}/cancel"])
def test_cancelling_an_unknown_turn_or_session_returns_404(path: str, acme: Tenant, other: Tenant):
    session_id = acme.session()["id"]
    turn_id = acme.message(session_id)["turn"]["id"]

    other.call("POST", path.format(session_id=session_id, turn_id=turn_id), 404)
    acme.call("POST", path.format(session_id=turn_id, turn_id=session_id), 404)

    assert acme.call("GET", f"/v1/turns/{turn_id}", 200)["status"] == "queued"


def test_takeover_cancels_open_turns_and_messages_open_none_until_mode_auto(acme: Tenant):
    session_id = acme.session()["id"]
    turn_id = acme.message(session_id)["turn"]["id"]

    taken = acme.call("PUT", f"/v1/sessions/{session_id}/mode", 200, json={"mode": "manual"})

    sessions.Session.model_validate(taken)
    assert taken["mode"] == "manual"
    turn = acme.call("GET", f"/v1/turns/{turn_id}", 200)
    assert (turn["status"], turn["error"]["class"], turn["cancelled_by"]) == ("cancelled", "TakenOver", key_of(acme))
    assert acme.message(session_id, "Anyone?")["turn"] is None
    mode = next(event for event in log(acme, session_id) if event["content"].get("status") == "mode")
    assert mode["content"] == {"status": "mode", "mode": "manual", "previous": "auto", "by": key_of(acme)}
    before = len(log(acme, session_id))
    acme.call("PUT", f"/v1/sessions/{session_id}/mode", 200, json={"mode": "manual"})
    assert len(log(acme, session_id)) == before, "setting the mode is not idempotent"
    acme.call("PUT", f"/v1/sessions/{session_id}/mode", 200, json={"mode": "auto"})
    assert acme.message(session_id, "And now?")["turn"]["status"] == "queued"


def test_turns_of_a_paused_session_are_dispatched_in_mode_auto(acme: Tenant):
    session_id = acme.session(mode="paused")["id"]
    turn_id = acme.message(session_id)["turn"]["id"]
    assert acme.service.sql("SELECT admission, dispatched_at FROM turns WHERE id = %s", UUID(turn_id)) == [("blocked", None)]

    assert acme.call("PUT", f"/v1/sessions/{session_id}/mode", 200, json={"mode": "auto"})["mode"] == "auto"

    until(lambda: acme.service.sql("SELECT 1 FROM turns WHERE id = %s AND dispatched_at IS NOT NULL", UUID(turn_id)))


def test_invalid_mode_changes_are_refused(acme: Tenant, other: Tenant):
    session_id = acme.session()["id"]
    path = f"/v1/sessions/{session_id}/mode"

    assert acme.call("PUT", path, 422, json={"mode": "off"})["errors"][0]["where"] == "body.mode"
    other.call("PUT", path, 404, json={"mode": "manual"})
    acme.call("POST", f"/v1/sessions/{session_id}/end", 200)
    assert "ended" in acme.call("PUT", path, 409, json={"mode": "manual"})["detail"]
    assert acme.call("GET", f"/v1/sessions/{session_id}", 200)["mode"] == "auto"


@pytest.mark.parametrize("source", ["human_agent", "human_agent_on_behalf_of_ai_agent"])
def test_message_of_a_person_opens_no_turn(source: str, acme: Tenant):
    session_id = acme.session(mode="manual")["id"]
    path = f"/v1/sessions/{session_id}/messages"

    body = {"text": "Ada's colleague here.", "source": source, "message_key": "p1", "metadata": {"desk": 4}}
    answer = acme.call("POST", path, 202, json=body)

    messages.Accepted.model_validate(answer)
    event = answer["event"]
    assert answer["turn"] is None
    assert (event["kind"], event["source"], event["content"], event["turn_id"]) == ("agent_message", source, {"text": body["text"]}, None)
    assert log(acme, session_id) == [event]
    again = acme.http.post(path, json=body)
    assert (again.json(), again.headers["idempotent-replayed"]) == (answer, "true")
    assert acme.call("POST", path, 409, json=body | {"text": "Another."})["code"] == "CONFLICT"
    assert acme.call("POST", path, 409, json={"text": body["text"], "message_key": "p1"})["code"] == "CONFLICT"
    counters = acme.call("GET", f"/v1/sessions/{session_id}", 200)
    assert (counters["event_count"], counters["message_count"]) == (1, 1)
    acme.call("POST", f"/v1/sessions/{session_id}/end", 200)
    acme.call("POST", path, 409, json=body | {"message_key": "p2"})


@pytest.mark.parametrize(
    ("fields", "where"), [({"source": "ai_agent"}, "body.source"), ({"source": "human_agent", "strategy": "enqueue"}, "body.strategy")]
)
def test_invalid_source_and_strategy_of_a_person_are_refused(fields: dict[str, str], where: str, acme: Tenant, other: Tenant):
    session_id = acme.session()["id"]

    problem = acme.call("POST", f"/v1/sessions/{session_id}/messages", 422, json={"text": "Hi"} | fields)

    assert problem["errors"][0]["where"] == where
    other.call("POST", f"/v1/sessions/{session_id}/messages", 404, json={"text": "Hi", "source": "human_agent"})
    assert log(acme, session_id) == []


def test_strategy_reject_refuses_only_while_a_turn_is_open(acme: Tenant):
    agent = acme.agent(strategy="reject")
    session_id = acme.session(agent_id=agent["id"])["id"]
    path = f"/v1/sessions/{session_id}/messages"
    turn_id = acme.message(session_id, "one")["turn"]["id"]

    assert "reject" in acme.call("POST", path, 409, json={"text": "two", "message_key": "k2"})["detail"]
    assert len(log(acme, session_id)) == 1, "the refused message is in the log"
    assert acme.message(session_id, "three", strategy="coalesce")["turn"]["id"] == turn_id, (
        "the message's strategy does not override the agent's"
    )
    acme.call("POST", f"/v1/turns/{turn_id}/cancel", 202)
    assert acme.message(session_id, "two", message_key="k2")["turn"]["id"] != turn_id


@pytest.mark.parametrize(("strategy", "reason"), [("interrupt", "Interrupted"), ("rollback", "RolledBack")])
def test_interrupting_message_cancels_the_running_turn_and_opens_the_next(strategy: str, reason: str, acme: Tenant):
    session_id = acme.session()["id"]
    first = acme.message(session_id, "one", strategy=strategy)["turn"]["id"]
    assert acme.message(session_id, "wait", strategy=strategy)["turn"]["id"] == first, "a queued turn was interrupted"
    claim(acme, first)

    second = acme.message(session_id, "two", strategy=strategy)["turn"]["id"]
    third = acme.message(session_id, "three", strategy=strategy)["turn"]["id"]

    assert first != second == third
    stopping = acme.call("GET", f"/v1/turns/{first}", 200)
    assert (stopping["status"], stopping["cancelled_by"]) == ("running", "customer")
    assert acme.service.sql("SELECT cancel_reason FROM turns WHERE id = %s", UUID(first)) == [(reason,)]


def test_agent_without_interruption_reads_the_message_in_the_open_turn(acme: Tenant):
    session_id = acme.session(agent_id=acme.agent(allow_interruption=False)["id"])["id"]
    first = acme.message(session_id, "one")["turn"]["id"]
    claim(acme, first)

    assert acme.message(session_id, "two", strategy="interrupt")["turn"]["id"] == first
    assert acme.message(session_id, "three", strategy="rollback")["turn"]["id"] == first
    assert acme.call("GET", f"/v1/turns/{first}", 200)["cancel_requested_at"] is None


@pytest.mark.parametrize(
    ("effect", "state", "attempts", "refused"),
    [
        ("unsafe", "running", 0, True),
        ("unsafe", "succeeded", 1, True),
        ("unsafe", "unknown", 1, True),
        ("unsafe", "failed", 1, True),
        ("unsafe", "failed", 0, False),
        ("unsafe", "awaiting_approval", 0, False),
        ("idempotent", "succeeded", 1, False),
    ],
)
def test_turn_whose_unsafe_tool_has_run_is_not_rolled_back(effect: str, state: str, attempts: int, refused: bool, acme: Tenant):
    session_id = acme.session()["id"]
    turn_id = acme.message(session_id, "one")["turn"]["id"]
    claim(acme, turn_id)
    acme.service.sql(
        "INSERT INTO tool_calls (workspace_id, session_id, turn_id, tool_call_id, step, position, tool_name, effect, state, attempts,"
        " arguments_hash, idempotency_key) VALUES (%s, %s, %s, 'c', 0, 0, 'refund', %s, %s, %s, '', %s)",
        *(acme.workspace_id, UUID(session_id), UUID(turn_id), effect, state, attempts, turn_id),
    )

    answer = acme.http.post(f"/v1/sessions/{session_id}/messages", json={"text": "two", "strategy": "rollback"})

    assert answer.status_code == (409 if refused else 202), answer.text
    assert (acme.call("GET", f"/v1/turns/{turn_id}", 200)["cancel_requested_at"] is None) == refused
    if refused:
        assert "unsafe tool" in answer.json()["detail"]
