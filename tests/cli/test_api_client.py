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
    """Answers each connection with the next of `replies`, pieces of bytes, and closes it."""
    replies: list[Iterable[bytes]] = []
    threads: list[threading.Thread] = []
    listening = socket.create_server(("127.0.0.1", 0))

    def serve():
        while replies:
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):  # the client may leave first
                connection.recv(65536)
                for piece in replies.pop(0):
                    connection.sendall(piece)

    def start(*pieces_of_each):
        replies.extend(pieces_of_each)
        threads.append(threading.Thread(target=serve))
        threads[0].start()
        return f"http://127.0.0.1:{listening.getsockname()[1]}"

    with listening:
        yield start
        for thread in threads:
            thread.join(10)


def answer(status, body, kind="application/problem+json"):
    return f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n{body}".encode()


STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"


def test_a_refusal_is_said_in_the_words_of_its_problem(server):
    url = server([answer(422, json.dumps({"detail": "Blank."}))], [answer(401, "{}")], [answer(500, "<html>")])
    with Api(url, "key") as api:
        for words in ("POST /v1/x was answered with 422: Blank.", "Set TURNLINE_API_KEY", "answered with 500"):
            with pytest.raises(SetupError, match=words):
                api.post("/v1/x", {})


def test_an_api_that_is_not_there_is_said():
    with Api(f"http://127.0.0.1:{free_port()}", "key") as api, pytest.raises(SetupError, match="cannot be reached"):
        api.get("/v1/x")


def test_a_stream_gives_whole_events(server):
    url = server([STREAM, b"id: 0\nevent: event\nda", b'ta: {"offset": 0}\n\n'])
    with Api(url, "key") as api, api.stream("/v1/s") as events:
        assert [found for found in events if found[0]] == [("event", {"offset": 0})]


def test_a_stream_that_only_keeps_alive_does_not_keep_the_demo_waiting(server, monkeypatch):
    monkeypatch.setattr(demo, "ANSWER_WITHIN_S", 0.0)

    def for_ever():
        yield STREAM
        while True:
            yield b": still here\n\n"

    url = server(for_ever())
    with Api(url, "key") as api, api.stream("/v1/s") as events, pytest.raises(SetupError, match="No answer came"):
        demo._show_log(events, Console(quiet=True))
