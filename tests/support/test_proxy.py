"""The proxy on real sockets, in front of a server that echoes every line."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from collections.abc import Iterator

import pytest

from tests.support.proxy import Proxy
from tests.support.servers import until


class Echo(socketserver.ThreadingTCPServer):
    """Echoes each line, and records it."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self) -> None:
        self.received: list[bytes] = []
        super().__init__(("127.0.0.1", 0), _Line)


class _Line(socketserver.StreamRequestHandler):
    server: Echo

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            for line in self.rfile:
                self.server.received.append(line)
                self.wfile.write(line)


@pytest.fixture
def echo() -> Iterator[Echo]:
    with Echo() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    with Proxy(echo.server_address[1]) as made:
        yield made


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    with connect(proxy) as made:
        yield made


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)


def ask(client: socket.socket, line: bytes) -> bytes:
    client.sendall(line)
    return client.recv(100)


def receives_nothing(client: socket.socket) -> bool:
    client.settimeout(0.3)
    try:
        client.recv(100)
    except TimeoutError:
        return True
    finally:
        client.settimeout(5)
    return False


def test_bytes_are_relayed_both_ways_and_counted(proxy: Proxy, client: socket.socket):
    assert ask(client, b"one\n") == b"one\n"
    client.sendall(b"x" * 200_000 + b"\n")
    got = 0
    while got < 200_001:
        got += len(client.recv(100_000))

    assert proxy.counts.passed_bytes == 2 * (4 + 200_001)
    assert proxy.counts.accepted == 1
    assert proxy.connections == 1


def test_end_of_stream_is_relayed_after_the_last_answer(proxy: Proxy, client: socket.socket):
    client.sendall(b"last\n")
    client.shutdown(socket.SHUT_WR)

    assert client.recv(100) == b"last\n"
    assert client.recv(100) == b""
    until(lambda: proxy.connections == 0)


def test_stalled_bytes_arrive_after_healing(proxy: Proxy, echo: Echo, client: socket.socket):
    assert ask(client, b"before\n") == b"before\n"
    proxy.stall()
    client.sendall(b"held\n")
    with connect(proxy) as newcomer:
        newcomer.sendall(b"held too\n")

        assert receives_nothing(client)
        assert receives_nothing(newcomer)
        assert echo.received == [b"before\n"]
        assert proxy.counts.held_bytes == 14

        proxy.heal()
        assert client.recv(100) == b"held\n"
        assert newcomer.recv(100) == b"held too\n"


def test_end_of_stream_during_a_stall_is_relayed_after_healing(proxy: Proxy, echo: Echo):
    with connect(proxy) as gone:
        assert ask(gone, b"hello\n") == b"hello\n"
        proxy.stall()
    assert proxy.connections == 1
    proxy.heal()
    until(lambda: proxy.connections == 0)


def test_black_hole_swallows_bytes_and_healing_resets_its_connections(proxy: Proxy, echo: Echo, client: socket.socket):
    assert ask(client, b"before\n") == b"before\n"
    proxy.black_hole()
    client.sendall(b"gone\n")
    with connect(proxy) as newcomer:
        newcomer.sendall(b"gone too\n")
        assert receives_nothing(newcomer)
        assert receives_nothing(client)
        assert echo.received == [b"before\n"]
        assert proxy.counts.swallowed_bytes == 14

        proxy.heal()
        for one in (client, newcomer):
            with pytest.raises(ConnectionResetError):
                one.recv(100)


def test_refuse_rejects_new_connections_and_keeps_open_ones(proxy: Proxy, client: socket.socket):
    assert ask(client, b"before\n") == b"before\n"
    proxy.refuse()

    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    assert ask(client, b"still here\n") == b"still here\n"

    proxy.heal()
    with connect(proxy) as newcomer:
        assert ask(newcomer, b"after\n") == b"after\n"


@pytest.mark.parametrize("stalled", [False, True])
def test_a_cut_resets_every_connection(proxy: Proxy, client: socket.socket, stalled: bool):
    assert ask(client, b"before\n") == b"before\n"
    if stalled:
        proxy.stall()
        client.sendall(b"held\n")

    assert proxy.cut() == 1

    with pytest.raises(ConnectionResetError):
        client.recv(100)
    until(lambda: proxy.connections == 0)
    assert proxy.counts.cut == 1


def test_lost_reply_reaches_the_server_but_not_the_client(proxy: Proxy, echo: Echo, client: socket.socket):
    assert ask(client, b"before\n") == b"before\n"
    assert proxy.lose_replies() == 1
    with connect(proxy) as newcomer:
        assert ask(newcomer, b"spared\n") == b"spared\n"
        client.sendall(b"done\n")

        with pytest.raises(ConnectionResetError):
            client.recv(100)
        assert b"done\n" in echo.received
        assert proxy.counts.lost_replies == 1
        assert proxy.counts.swallowed_bytes == 5
        assert ask(newcomer, b"spared\n") == b"spared\n"


def test_unreachable_server_is_counted(proxy: Proxy, echo: Echo):
    echo.shutdown()
    echo.server_close()
    with contextlib.suppress(ConnectionResetError), connect(proxy) as client:
        assert client.recv(100) == b""
    until(lambda: proxy.counts.unreachable == 1)


def test_take_down_resets_and_refuses_until_healed(proxy: Proxy, client: socket.socket):
    assert ask(client, b"before\n") == b"before\n"
    proxy.take_down()

    with pytest.raises(ConnectionResetError):
        client.recv(100)
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    proxy.heal()
    with connect(proxy) as newcomer:
        assert ask(newcomer, b"after\n") == b"after\n"
