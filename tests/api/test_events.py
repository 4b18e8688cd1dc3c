"""Events of the log, by page and by long poll."""

from __future__ import annotations

import concurrent.futures
import time

import pytest

from realtime import event_reader
from tests.support.api_server import Tenant, serving
from tests.support.servers import until


@pytest.fixture
def realtime_only(monkeypatch: pytest.MonkeyPatch):
    """Make readers read the log only after a realtime message."""
    monkeypatch.setattr(event_reader, "LOOK_EVERY_S", 60)


def test_log_is_read_by_page_and_by_kind(acme: Tenant):
    session = acme.session()
    path = f"/v1/sessions/{session['id']}/events"
    assert acme.call("GET", path, 200) == {"events": [], "next_after": -1}
    acme.message(session["id"], "one")
    acme.append_event(session["id"], "tool_call", {"tool_call_id": "c1", "tool_name": "lookup", "arguments": {}})
    acme.append_event(session["id"], "tool_result", {"tool_call_id": "c1", "tool_name": "lookup", "status": "succeeded", "result": 1})
    acme.append_event(session["id"], "agent_message", {"text": "Yes."})

    seen, after = [], -1
    while page := acme.call("GET", path, 200, params={"after": after, "limit": 3})["events"]:
        seen += page
        after = page[-1]["offset"]
    assert [event["offset"] for event in seen] == [0, 1, 2, 3]
    assert acme.call("GET", path, 200, params={"after": 3}) == {"events": [], "next_after": 3}

    def kinds(query: str) -> list[str]:
        return [event["kind"] for event in acme.call("GET", f"{path}?{query}", 200)["events"]]

    assert kinds("kind=tool_call,tool_result") == kinds("kind=tool_call&kind=tool_result") == ["tool_call", "tool_result"]
    assert kinds("kind=agent_message&after=3") == []
    assert kinds("kind=") == [event["kind"] for event in seen]


@pytest.mark.parametrize(
    "query",
    [
        *("after=-2", "after=x", "after=1.5", "after=2147483648", f"after={10**30}", "limit=0", "limit=501", "kind=gossip", "kind=%00"),
        *("wait=-1", "wait=61", "wait=nan", "wait=inf", "wait=soon"),
    ],
)
def test_invalid_query_returns_422(acme: Tenant, query: str):
    problem = acme.call("GET", f"/v1/sessions/{acme.session()['id']}/events?{query}", 422)
    assert problem["errors"][0]["where"].startswith("query.")


@pytest.mark.usefixtures("realtime_only")
def test_long_poll_answers_when_the_log_grows(acme: Tenant):
    session = acme.session()
    path = f"/v1/sessions/{session['id']}/events"
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        waiting = [
            pool.submit(acme.call, "GET", path, 200, params={"wait": 60}),
            pool.submit(acme.call, "GET", path, 200, params={"wait": 60, "kind": "agent_message"}),
        ]
        until(lambda: acme.subscription_count(session["id"]) == 2)
        acme.publish_delta(session["id"], "deltas do not answer a long poll")
        accepted = acme.message(session["id"])
        assert waiting[0].result(20) == {"events": [accepted["event"]], "next_after": 0}
        assert not waiting[1].done()
        acme.append_event(session["id"], "agent_message", {"text": "Yes."})
        assert [event["offset"] for event in waiting[1].result(20)["events"]] == [1]
    assert acme.subscription_count(session["id"]) == 0


def test_long_poll_ends_after_its_wait(acme: Tenant):
    session = acme.session()
    assert acme.call("GET", f"/v1/sessions/{session['id']}/events", 200, params={"wait": 0.2, "after": 7}) == {
        "events": [],
        "next_after": 7,
    }


def test_long_poll_ends_when_its_client_disconnects(acme: Tenant, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(event_reader, "LOOK_EVERY_S", 0.1)
    session = acme.session()
    with acme.using(acme.api_key) as leaving, concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(leaving.http.get, f"/v1/sessions/{session['id']}/events?wait=60", timeout=0.3)
        until(lambda: acme.subscription_count(session["id"]) == 1)
        until(lambda: acme.subscription_count(session["id"]) == 0)


def test_long_poll_reads_the_log_without_realtime_messages(database_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(event_reader, "LOOK_EVERY_S", 0.2)
    with (
        serving(DATABASE_URL=database_url, CELERY_BROKER_URL="amqp://127.0.0.1:1") as service,
        service.tenant("Acme") as acme,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        session = acme.session(mode="manual")
        waiting = pool.submit(acme.call, "GET", f"/v1/sessions/{session['id']}/events", 200, params={"wait": 60})
        until(lambda: acme.subscription_count(session["id"]) == 1)
        acme.append_event(session["id"], "agent_message", {"text": "Yes."})
        began = time.monotonic()
        assert [event["offset"] for event in waiting.result(20)["events"]] == [0]
        assert time.monotonic() - began < 20
