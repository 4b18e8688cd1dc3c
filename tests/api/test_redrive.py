"""Redriving turns and releasing quarantined sessions over HTTP. No worker runs here."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from api.schemas import sessions, turns
from tests.support.api_server import Tenant
from tests.support.servers import until


def key_of(acme: Tenant) -> str:
    """Return the caller's key as the log shows it."""
    ((name, prefix),) = acme.service.sql("SELECT name, prefix FROM api_keys WHERE workspace_id = %s", acme.workspace_id)
    return f"{name} ({prefix})"


def die(acme: Tenant, turn_id: str) -> None:
    """Claim the turn with leases that expire at once, until it is dead."""

    def dead() -> bool:
        acme.service.sql("SELECT claim_turn(%s, gen_random_uuid()::text, 0.01, 1, 400)", UUID(turn_id))
        return bool(acme.service.sql("SELECT 1 FROM turns WHERE id = %s AND status = 'dead'", UUID(turn_id)))

    until(dead)


def dead_turn(acme: Tenant, session_id: str, text: str = "Is order 41 paid?") -> str:
    turn_id: str = acme.message(session_id, text)["turn"]["id"]
    die(acme, turn_id)
    return turn_id


def status_updates(acme: Tenant, session_id: str) -> list[dict[str, Any]]:
    events = acme.call("GET", f"/v1/sessions/{session_id}/events?kind=status_update", 200)["events"]
    return [event["content"] for event in events]


def dispatched(acme: Tenant, turn_id: str) -> bool:
    return bool(acme.service.sql("SELECT 1 FROM turns WHERE id = %s AND dispatched_at IS NOT NULL", UUID(turn_id)))


@pytest.mark.parametrize("body", [None, {}, {"from_scratch": True}])
def test_redriven_turn_is_queued_dispatched_and_logged(body: dict[str, Any] | None, acme: Tenant):
    session_id = acme.session()["id"]
    turn_id = dead_turn(acme, session_id)

    answer = acme.call("POST", f"/v1/turns/{turn_id}/redrive", 202, **({} if body is None else {"json": body}))

    turns.Redriven.model_validate(answer)
    assert answer == {"turn": {"id": turn_id, "status": "queued"}}
    turn = acme.call("GET", f"/v1/turns/{turn_id}", 200)
    turns.Turn.model_validate(turn)
    assert (turn["status"], turn["attempts"], turn["error"], turn["settled_at"]) == ("queued", 0, None, None)
    assert status_updates(acme, session_id)[-1] == {"status": "redriven", "from_scratch": bool(body), "by": key_of(acme)}
    until(lambda: dispatched(acme, turn_id))
    again = acme.call("POST", f"/v1/turns/{turn_id}/redrive", 409)
    assert "still open" in again["detail"]


def test_refused_redrive_gives_the_reason(acme: Tenant, other: Tenant):
    session_id = acme.session()["id"]
    turn_id = acme.message(session_id)["turn"]["id"]
    path = f"/v1/turns/{turn_id}/redrive"

    def refused() -> str:
        return str(acme.call("POST", path, 409, json={})["detail"])

    other.call("POST", path, 404, json={})
    acme.call("POST", f"/v1/turns/{session_id}/redrive", 404, json={})
    acme.call("POST", path, 422, json={"from_scratch": "yes"})
    assert "still open" in refused()
    for status, words in (("done", "was answered"), ("cancelled", "was cancelled")):
        acme.service.sql("UPDATE turns SET status = %s WHERE id = %s", status, UUID(turn_id))
        assert words in refused()
    acme.service.sql("UPDATE turns SET status = 'queued' WHERE id = %s", UUID(turn_id))
    die(acme, turn_id)
    acme.call("PUT", f"/v1/sessions/{session_id}/mode", 200, json={"mode": "manual"})
    assert "person answers" in refused()
    acme.call("PUT", f"/v1/sessions/{session_id}/mode", 200, json={"mode": "auto"})
    later = acme.message(session_id, "And order 42?")["turn"]["id"]
    acme.service.sql("SELECT claim_turn(%s, 'a worker', 60, 5, 400)", UUID(later))
    assert "later turn" in refused()
    acme.service.sql("UPDATE turns SET status = 'failed' WHERE id = %s", UUID(later))
    acme.call("POST", f"/v1/sessions/{session_id}/end", 200)
    assert "session has ended" in refused()
    assert acme.call("GET", f"/v1/turns/{turn_id}", 200)["status"] == "dead", "a refused redrive changed the turn"


@pytest.mark.parametrize(
    ("effect", "state", "attempts", "refused"),
    [
        ("unsafe", "succeeded", 1, True),
        ("unsafe", "unknown", 0, True),
        ("unsafe", "failed", 1, True),
        ("unsafe", "failed", 0, False),
        ("unsafe", "denied", 0, False),
        ("idempotent", "succeeded", 1, False),
        ("queryable", "unknown", 1, False),
    ],
)
def test_redrive_from_scratch_never_repeats_an_unsafe_tool(effect: str, state: str, attempts: int, refused: bool, acme: Tenant):
    session_id = acme.session()["id"]
    turn_id = dead_turn(acme, session_id)
    acme.service.sql(
        "INSERT INTO tool_calls (workspace_id, session_id, turn_id, tool_call_id, step, position, tool_name, effect, state, attempts,"
        " arguments_hash, idempotency_key) VALUES (%s, %s, %s, 'c', 0, 0, 'refund', %s, %s, %s, '', %s)",
        *(acme.workspace_id, UUID(session_id), UUID(turn_id), effect, state, attempts, turn_id),
    )

    answer = acme.http.post(f"/v1/turns/{turn_id}/redrive", json={"from_scratch": True})

    assert answer.status_code == (409 if refused else 202), answer.text
    if refused:
        assert "must not be repeated" in answer.json()["detail"]
        acme.call("POST", f"/v1/turns/{turn_id}/redrive", 202, json={"from_scratch": False})


def test_three_dead_turns_quarantine_a_session_until_it_is_released(acme: Tenant, other: Tenant):
    session_id = acme.session()["id"]
    for number in range(3):
        assert acme.call("GET", f"/v1/sessions/{session_id}", 200)["quarantined_at"] is None, number
        dead_turn(acme, session_id, f"m{number}")

    quarantined = acme.call("GET", f"/v1/sessions/{session_id}", 200)
    sessions.Session.model_validate(quarantined)
    assert quarantined["quarantined_at"] is not None
    assert status_updates(acme, session_id)[-1] == {"status": "quarantined"}
    assert [one["id"] for one in acme.call("GET", "/v1/sessions?quarantined=true", 200)["items"]] == [session_id]
    assert acme.call("GET", "/v1/sessions?quarantined=false", 200)["items"] == []
    waiting = acme.message(session_id, "Hello?")["turn"]["id"]
    assert acme.service.sql("SELECT (claim_turn(%s, 'me', 30, 5, 400)).o_outcome", UUID(waiting)) == [("quarantined",)]

    other.call("POST", f"/v1/sessions/{session_id}/release", 404)
    released = acme.call("POST", f"/v1/sessions/{session_id}/release", 200)

    sessions.Session.model_validate(released)
    assert released["quarantined_at"] is None
    assert status_updates(acme, session_id)[-1] == {"status": "released", "by": key_of(acme)}
    until(lambda: dispatched(acme, waiting))
    before = len(status_updates(acme, session_id))
    acme.call("POST", f"/v1/sessions/{session_id}/release", 200)
    assert len(status_updates(acme, session_id)) == before, "releasing is not idempotent"
