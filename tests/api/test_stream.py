"""The log as server-sent events."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID, uuid4

import pytest

from api import sse
from realtime import event_reader
from tests.support.api_server import Tenant
from tests.support.event_stream import Stream, streaming
from tests.support.servers import until


@pytest.fixture
def recheck_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sse, "RECHECK_KEY_S", 0.0)
    monkeypatch.setattr(event_reader, "LOOK_EVERY_S", 0.1)


def test_stream_starts_with_the_log_and_continues_as_it_grows(acme: Tenant):
    session = acme.session()
    first = acme.message(session["id"], "one")["event"]
    with streaming(acme, session["id"]) as events:
        headers = events.response.headers
        assert headers["content-type"].startswith("text/event-stream")
        assert (headers["x-accel-buffering"], headers["cache-control"]) == ("no", "no-store")
        assert "content-length" not in headers
        assert [(frame.event, frame.id, frame.value) for frame in events.frames(1)] == [("event", "0", first)]
        second = acme.message(session["id"], "zwei\r\n\u2028\u2029\x85 \U0001f600 data: x\n\nid: 99")["event"]
        frame = events.frame()
        assert (frame.event, frame.id, frame.value) == ("event", "1", second)


def test_deltas_are_sent_between_events_and_have_no_id(acme: Tenant):
    session = acme.session()
    with streaming(acme, session["id"]) as events:
        accepted = acme.message(session["id"])
        turn_id = accepted["turn"]["id"]
        assert events.frame().id == "0"
        deltas = []
        until(lambda: acme.subscription_count(session["id"]) == 1)
        acme.publish_delta(session["id"], "Yes, \ud83d", UUID(turn_id))
        deltas.append(events.frame())
        acme.publish_delta(session["id"], "\ude00 it is.", UUID(turn_id))
        deltas.append(events.frame())
        acme.append_event(session["id"], "agent_message", {"text": "Yes, 😀 it is."}, turn_id)
        reply = events.frame()
        acme.publish_delta(session["id"], "late", UUID(turn_id))
        acme.publish_delta(session["id"], "next", uuid4())

        assert [(frame.event, frame.id) for frame in deltas] == [("delta", None)] * 2
        assert deltas[0].value == {"turn_id": turn_id, "attempt": 1, "text": "Yes, \ud83d"}
        assert "".join(frame.value["text"] for frame in deltas).encode("utf-16", "surrogatepass").decode("utf-16") == "Yes, 😀 it is."
        assert (reply.id, reply.value["content"]) == ("1", {"text": "Yes, 😀 it is."})
        assert events.frame().value["text"] == "next", "a delta that arrives after its reply was sent"


def test_stream_resumes_after_the_last_event_id(acme: Tenant):
    session = acme.session()
    for number in range(5):
        acme.message(session["id"], f"m{number}")
    with streaming(acme, session["id"], "?after=0") as events:
        assert [frame.id for frame in events.frames(4)] == ["1", "2", "3", "4"]
    with streaming(acme, session["id"], "?after=0", **{"Last-Event-ID": "2"}) as events:
        assert [frame.id for frame in events.frames(2)] == ["3", "4"]
        acme.message(session["id"], "m5")
        assert events.frame().id == "5"
    with streaming(acme, session["id"], **{"Last-Event-ID": "-1"}) as events:
        assert events.frame().id == "0"


def test_long_log_is_streamed_completely_while_it_grows(acme: Tenant):
    session = acme.session()
    many = json.dumps([{"kind": "status_update", "source": "system", "content": {"n": number}} for number in range(350)])
    acme.service.sql("SELECT append_events(%s, %s, NULL, 0, %s::jsonb)", acme.workspace_id, UUID(session["id"]), many)
    with streaming(acme, session["id"]) as events:
        seen = [events.frame() for _ in range(150)]
        acme.message(session["id"])
        seen += events.frames(201)
    assert [frame.id for frame in seen] == [str(number) for number in range(351)]


@pytest.mark.parametrize("value", ["x", "-2", "1.5", "9999999999", "²", "9" * 30, ""])
def test_invalid_last_event_id_returns_422(acme: Tenant, value: str):
    answer = acme.http.get(f"/v1/sessions/{acme.session()['id']}/stream", headers={b"Last-Event-ID": value.encode()})
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")


def test_errors_are_returned_before_the_stream_starts(acme: Tenant):
    assert acme.http.get(f"/v1/sessions/{uuid4()}/stream").status_code == 404
    assert acme.http.get(f"/v1/sessions/{acme.session()['id']}/stream?after=-2").status_code == 422
    assert acme.http.get(f"/v1/sessions/{acme.session()['id']}/stream", headers={"Authorization": "Bearer tl_x"}).status_code == 401


def test_idle_stream_is_kept_open_by_comments(acme: Tenant, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sse, "KEEPALIVE_S", 0.2)
    monkeypatch.setattr(event_reader, "LOOK_EVERY_S", 0.1)
    session = acme.session()
    with streaming(acme, session["id"]) as events:
        assert [bool(frame.comment) for frame in events.frames(3)] == [True] * 3
        acme.message(session["id"])
        while (frame := events.frame()).comment:
            pass
        assert frame.id == "0"


@pytest.mark.usefixtures("recheck_at_once")
def test_revoked_key_ends_its_streams(acme: Tenant):
    session = acme.session()
    key = acme.key("read")
    with acme.using(key.text) as reader, streaming(reader, session["id"]) as events, streaming(acme, session["id"]) as others:
        acme.message(session["id"])
        assert (events.frame().id, others.frame().id) == ("0", "0")
        acme.revoke(key.id)
        assert events.ended()
        acme.message(session["id"])
        assert others.frame().id == "1"
        assert reader.http.get(f"/v1/sessions/{session['id']}/stream").status_code == 401


def test_disconnected_client_is_unsubscribed(acme: Tenant):
    session = acme.session()
    with streaming(acme, session["id"]):
        until(lambda: acme.subscription_count(session["id"]) == 1)
    until(lambda: acme.subscription_count(session["id"]) == 0)


def test_reset_client_is_unsubscribed(acme: Tenant):
    session = acme.session()
    with _raw(acme, session["id"]) as client:
        until(lambda: acme.subscription_count(session["id"]) == 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    until(lambda: acme.subscription_count(session["id"]) == 0)


def test_client_that_reads_nothing_is_disconnected(acme: Tenant, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sse, "SEND_TIMEOUT_S", 0.5)
    session = acme.session()
    with _raw(acme, session["id"], receive_buffer=4096) as client:
        until(lambda: acme.subscription_count(session["id"]) == 1)
        long = json.dumps([{"kind": "status_update", "source": "system", "content": {"t": "x" * 50_000}} for _ in range(400)])
        acme.service.sql("SELECT append_events(%s, %s, NULL, 0, %s::jsonb)", acme.workspace_id, UUID(session["id"]), long)
        until(lambda: acme.subscription_count(session["id"]) == 0, 20)
        assert client.recv(10) == b"HTTP/1.1 2"


@contextmanager
def _raw(acme: Tenant, session_id: str, receive_buffer: int | None = None) -> Iterator[socket.socket]:
    """Request the stream over a socket, and read nothing from it."""
    with socket.socket() as client:
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.connect(("127.0.0.1", acme.service.port))
        client.settimeout(10)
        client.sendall(f"GET /v1/sessions/{session_id}/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {acme.api_key}\r\n\r\n".encode())
        yield client


def test_all_streams_of_a_session_get_every_event(acme: Tenant):
    session = acme.session()
    began = time.monotonic()
    with acme.service.client(acme.api_key) as http:
        open_streams = [http.send(http.build_request("GET", f"/v1/sessions/{session['id']}/stream"), stream=True) for _ in range(20)]
        try:
            acme.message(session["id"])
            assert [Stream(response).frame().id for response in open_streams] == ["0"] * 20
        finally:
            for response in open_streams:
                response.close()
    until(lambda: acme.subscription_count(session["id"]) == 0)
    assert time.monotonic() - began < 30
