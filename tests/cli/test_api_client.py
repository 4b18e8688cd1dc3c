"""The API client of the command line, against scripted HTTP responses."""

import contextlib
import json
import socket
import threading
from collections.abc import Iterable

import pytest
from rich.console import Console

from cli import demo
from cli.api_client import Api
from cli.errors import SetupError
from tests.support.servers import free_port


@pytest.fixture
def server():
    """A server that answers each connection with the next response, given as chunks of bytes, and closes it."""
    responses: list[Iterable[bytes]] = []
    threads: list[threading.Thread] = []
    listening = socket.create_server(("127.0.0.1", 0))

    def serve():
        while responses:
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):  # the client may leave first
                connection.recv(65536)
                for chunk in responses.pop(0):
                    connection.sendall(chunk)

    def start(*chunks_of_each):
        responses.extend(chunks_of_each)
        threads.append(threading.Thread(target=serve))
        threads[0].start()
        return f"http://127.0.0.1:{listening.getsockname()[1]}"

    with listening:
        yield start
        for thread in threads:
            thread.join(10)


def response(status, body, kind="application/problem+json"):
    return f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n{body}".encode()


STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"


def test_error_response_becomes_a_sentence_with_its_detail(server):
    url = server([response(422, json.dumps({"detail": "Blank."}))], [response(401, "{}")], [response(500, "<html>")])
    with Api(url, "key") as api:
        for message in ("POST /v1/x returned 422: Blank.", "Set TURNLINE_API_KEY", "returned 500"):
            with pytest.raises(SetupError, match=message):
                api.post("/v1/x", {})


def test_unreachable_api_becomes_a_sentence():
    with Api(f"http://127.0.0.1:{free_port()}", "key") as api, pytest.raises(SetupError, match="cannot be reached"):
        api.get("/v1/x")


def test_stream_yields_whole_events(server):
    url = server([STREAM, b"id: 0\nevent: event\nda", b'ta: {"offset": 0}\n\n'])
    with Api(url, "key") as api, api.stream("/v1/s") as events:
        assert [event for event in events if event[0]] == [("event", {"offset": 0})]


def test_demo_times_out_on_a_stream_of_keep_alives(server, monkeypatch):
    monkeypatch.setattr(demo, "ANSWER_TIMEOUT_S", 0.0)

    def keep_alives():
        yield STREAM
        while True:
            yield b": still here\n\n"

    url = server(keep_alives())
    with Api(url, "key") as api, api.stream("/v1/s") as events, pytest.raises(SetupError, match="No answer came"):
        demo._print_log(events, Console(quiet=True))
