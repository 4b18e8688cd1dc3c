from __future__ import annotations

import concurrent.futures
import json
from typing import Any
from uuid import UUID

import pytest

from tests.support.api_server import Tenant, serving
from tests.support.servers import EmbeddedValkey, until


def test_message_becomes_an_event_and_a_turn(acme: Tenant):
    session = acme.session()
    answer = acme.http.post(f"/v1/sessions/{session['id']}/messages", json={"text": "Is order 41 paid?", "metadata": {"page": "/cart"}})

    assert answer.status_code == 202
    event, turn = answer.json()["event"], answer.json()["turn"]
    assert (event["offset"], event["kind"], event["source"]) == (0, "customer_message", "customer")
    assert (event["content"], event["metadata"]) == ({"text": "Is order 41 paid?"}, {"page": "/cart"})
    assert turn == {"id": event["turn_id"], "status": "queued"}
    assert answer.headers["location"] == f"/v1/turns/{turn['id']}"
    assert acme.call("GET", f"/v1/sessions/{session['id']}/events", 200) == {"events": [event], "next_after": 0}
    counters = acme.call("GET", f"/v1/sessions/{session['id']}", 200)
    assert (counters["event_count"], counters["message_count"]) == (1, 1)
    joined = acme.message(session["id"], "And order 42?")
    assert (joined["event"]["offset"], joined["turn"]["id"]) == (1, turn["id"])
    alone = acme.message(session["id"], "And order 43?", strategy="enqueue")
    assert alone["turn"]["id"] != turn["id"]


def test_repeated_key_gets_the_first_response_and_another_text_conflicts(acme: Tenant):
    path = f"/v1/sessions/{acme.session()['id']}/messages"
    first = acme.http.post(path, json={"text": "Hello", "message_key": "k1", "metadata": {"n": 1}})
    again = acme.http.post(path, json={"text": "Hello", "message_key": "k1", "metadata": {"n": 2}})

    assert "idempotent-replayed" not in first.headers
    assert (again.status_code, again.headers["idempotent-replayed"]) == (202, "true")
    assert again.json() == first.json()
    assert again.headers["location"] == first.headers["location"]
    assert acme.call("POST", path, 409, json={"text": "Goodbye", "message_key": "k1"})["code"] == "CONFLICT"
    by_header = acme.http.post(path, json={"text": "Hello"}, headers={"Idempotency-Key": "k1"})
    assert by_header.json() == first.json()
    both = acme.http.post(path, json={"text": "Hello", "message_key": "k1"}, headers={"Idempotency-Key": "k2"})
    assert both.status_code == 422
    assert len(acme.call("GET", path.replace("messages", "events"), 200)["events"]) == 1


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"text": ""},
        {"text": " \n\t "},
        {"text": 3},
        {"text": None},
        {"text": "x" * 65_537},
        {"text": "ü" * 32_769},
        {"text": "Hi", "message_key": ""},
        {"text": "Hi", "message_key": "k" * 201},
        {"text": "Hi", "message_key": 7},
        {"text": "Hi", "metadata": []},
        {"text": "Hi", "metadata": {"a": "x" * 66_000}},
        {"text": "Hi", "strategy": "whenever"},
        {"text": "Hi", "role": "system"},
        {"text": "a\u0000b"},
        {"text": "Hi", "metadata": {"a\u0000": 1}},
        {"text": "Hi", "message_key": "\u0000"},
    ],
)
def test_invalid_message_is_refused_with_its_place(acme: Tenant, body: Any):
    session = acme.session()
    problem = acme.call("POST", f"/v1/sessions/{session['id']}/messages", 422, json=body)
    assert problem["code"] == "VALIDATION_ERROR"
    assert problem["errors"]
    assert problem["errors"][0]["where"]
    assert acme.call("GET", f"/v1/sessions/{session['id']}/events", 200)["events"] == []


@pytest.mark.parametrize("raw", [rb'{"text": "\ud83d"}', rb'{"text": "a\u0000b"}', rb'{"text": "Hi", "metadata": {"n": 1e999}}'])
def test_text_that_cannot_be_stored_is_refused(acme: Tenant, raw: bytes):
    session = acme.session()
    answer = acme.http.post(f"/v1/sessions/{session['id']}/messages", content=raw, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text


def test_longest_message_and_large_numbers_are_stored(acme: Tenant):
    session = acme.session()
    text = "ü" * 32_768
    raw = json.dumps({"text": text, "metadata": {"n": 2**80, "m": 2**53}})
    answer = acme.http.post(f"/v1/sessions/{session['id']}/messages", content=raw, headers={"Content-Type": "application/json"})
    assert answer.status_code == 202
    [event] = acme.call("GET", f"/v1/sessions/{session['id']}/events", 200)["events"]
    assert event["content"]["text"] == text
    assert event["metadata"] == {"n": str(2**80), "m": 2**53} == answer.json()["event"]["metadata"]


def test_message_in_manual_mode_opens_no_turn(acme: Tenant):
    session = acme.session(mode="manual")
    answer = acme.http.post(f"/v1/sessions/{session['id']}/messages", json={"text": "Hello"})
    assert (answer.status_code, answer.json()["turn"]) == (202, None)
    assert "location" not in answer.headers
    assert acme.message(acme.session(mode="paused")["id"])["turn"]["status"] == "queued"


def test_fifty_concurrent_messages_get_fifty_offsets(acme: Tenant):
    session = acme.session()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        accepted = list(pool.map(lambda number: acme.message(session["id"], f"m{number}", message_key=f"k{number}"), range(50)))

    assert sorted(item["event"]["offset"] for item in accepted) == list(range(50))
    assert len({item["turn"]["id"] for item in accepted}) == 1
    log = acme.call("GET", f"/v1/sessions/{session['id']}/events?limit=500", 200)["events"]
    assert {event["offset"]: event["content"]["text"] for event in log} == {
        item["event"]["offset"]: item["event"]["content"]["text"] for item in accepted
    }
    assert acme.call("GET", f"/v1/sessions/{session['id']}", 200)["message_count"] == 50


def test_concurrent_repeats_of_a_key_are_accepted_once(acme: Tenant):
    session = acme.session()
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        accepted = list(pool.map(lambda _: acme.message(session["id"], "Pay it", message_key="once"), range(20)))
    assert {json.dumps(item) for item in accepted} == {json.dumps(accepted[0])}
    assert acme.call("GET", f"/v1/sessions/{session['id']}", 200)["event_count"] == 1


def test_accepted_turn_is_dispatched_and_marked(acme: Tenant):
    turn = acme.message(acme.session()["id"])["turn"]
    until(lambda: acme.service.sql("SELECT 1 FROM turns WHERE id = %s AND dispatched_at IS NOT NULL", UUID(turn["id"])))


def test_message_is_accepted_without_a_broker(database_url: str):
    with EmbeddedValkey(None) as gone:
        url = gone.url
    with serving(DATABASE_URL=database_url, CELERY_BROKER_URL=url) as service, service.tenant("Acme") as acme:
        turn = acme.message(acme.session()["id"])["turn"]
        assert acme.call("GET", f"/v1/turns/{turn['id']}", 200)["status"] == "queued"
        assert acme.service.sql("SELECT dispatched_at FROM turns WHERE id = %s", UUID(turn["id"])) == [(None,)]
