"""The shared HTTP client against misbehaving servers. Each fault test asserts that the server really got the request."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator

import aiohttp
import pytest

from engine.errors import Malformed, ProviderDown, Rejected, ReplyLost, TimedOut
from integrations.http import HttpClient, RequestCounter
from tests.support.http_servers import Handler, Request, answering, chunked, free_port, never, reset, response, serve

PEER = "The server"


@pytest.fixture
async def http() -> AsyncIterator[HttpClient]:
    client = HttpClient()
    yield client
    await client.aclose()


async def fetch(
    http: HttpClient,
    url: str,
    *,
    method: str = "POST",
    content: bytes | None = b"{}",
    deadline_s: float = 20.0,
    max_bytes: int = 100_000,
    **more: object,
) -> tuple[int, bytes]:
    async with http.request(method, url, peer=PEER, deadline_s=deadline_s, max_bytes=max_bytes, content=content, **more) as answer:  # type: ignore[arg-type]
        return answer.status, await answer.body()


async def test_connections_are_reused(http: HttpClient):
    async with serve(answering(response({"a": 1}))) as server:
        for _ in range(5):
            assert await fetch(http, server.url + "/x?y=1", headers={"x-one": "1"}) == (200, b'{"a": 1}')

    assert server.connections == 1
    assert [request.target for request in server.requests] == ["/x?y=1"] * 5
    sent = server.requests[0]
    assert sent.headers["accept-encoding"] == "identity"
    assert sent.headers["x-one"] == "1"
    assert sent.body == b"{}"


async def test_proxy_variables_and_netrc_are_ignored(http: HttpClient, monkeypatch: pytest.MonkeyPatch, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password canary\n")
    netrc.chmod(0o600)
    async with serve(answering(response("direct"))) as server, serve(answering(response("proxied"))) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.setenv("NETRC", str(netrc))
        assert await fetch(http, server.url) == (200, b"direct")

    assert proxy.connections == 0
    assert "authorization" not in server.requests[0].headers


async def test_cookies_are_not_kept(http: HttpClient):
    async with serve(answering(response("{}", set_cookie="session=canary; Path=/"))) as server:
        for _ in range(2):  # a host name, because aiohttp never keeps cookies for IP addresses
            await fetch(http, server.url.replace("127.0.0.1", "localhost"))

    assert "cookie" not in server.requests[1].headers


async def test_redirects_are_not_followed(http: HttpClient):
    async with serve(answering(response("elsewhere", 302, location="http://127.0.0.1:1/"))) as server:
        assert await fetch(http, server.url) == (302, b"elsewhere")
    assert len(server.requests) == 1


async def test_three_hundred_in_flight_all_succeed(http: HttpClient):
    all_arrived = asyncio.Event()
    arrived = 0

    async def handle(_request: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal arrived
        arrived += 1
        if arrived == 300:
            all_arrived.set()
        await all_arrived.wait()  # answers only when all 300 have arrived, so no pool limit delays any
        writer.write(response("ok"))

    async with serve(handle) as server:
        replies = await asyncio.gather(*(fetch(http, server.url) for _ in range(300)))
    assert replies == [(200, b"ok")] * 300
    assert len(server.requests) == 300


async def test_a_refused_connection_counts_as_not_sent(http: HttpClient):
    counter = RequestCounter()
    with pytest.raises(ProviderDown) as caught:
        await fetch(http, f"http://127.0.0.1:{free_port()}", counter=counter)
    assert not caught.value.maybe_done
    assert counter.requests == 0


async def test_an_unknown_host_counts_as_not_sent(http: HttpClient):
    with pytest.raises(ProviderDown) as caught:
        await fetch(http, "http://nowhere.invalid/")
    assert not caught.value.maybe_done
    assert "name" in str(caught.value)


async def test_a_timeout_while_connecting_counts_as_not_sent(http: HttpClient):
    # A listener with a full backlog does not answer further connections.
    import socket

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    pending = []
    for _ in range(4):
        one = socket.socket()
        one.setblocking(False)
        one.connect_ex(listener.getsockname())
        pending.append(one)
    try:
        counter = RequestCounter()
        with pytest.raises(TimedOut) as caught:
            await fetch(http, f"http://127.0.0.1:{listener.getsockname()[1]}", deadline_s=0.2, counter=counter)
        assert not caught.value.maybe_done
        assert counter.requests == 0
    finally:
        for one in (*pending, listener):
            one.close()


async def test_a_failed_tls_handshake_counts_as_not_sent(http: HttpClient):
    async def plain(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(response("plain", 400))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(plain, "127.0.0.1", 0) as server:
        with pytest.raises(ProviderDown, match="TLS") as caught:
            await fetch(http, f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    assert not caught.value.maybe_done


def dripping(head: bytes, byte: bytes) -> Handler:
    async def handle(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(byte)
            await writer.drain()
            await asyncio.sleep(0.02)

    return handle


@pytest.mark.parametrize(
    "handler",
    [
        never,
        dripping(b"HTTP/1.1 200 OK\r\ncontent-length: 90000\r\n\r\n", b"x"),
        dripping(b"HTTP/1.1 200 OK\r\n", b"x-h: 1\r\n"[:1]),
    ],
    ids=["silence", "a body byte by byte", "a header byte by byte"],
)
async def test_the_deadline_is_wall_clock_time(http: HttpClient, handler: Handler):
    async with serve(handler) as server:
        with pytest.raises(TimedOut) as caught:
            await fetch(http, server.url, deadline_s=0.3)
        assert caught.value.maybe_done
        assert len(server.requests) == 1
        await asyncio.wait_for(server.gone.wait(), 20)


@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "DELETE"])
@pytest.mark.parametrize("part", [b"", b"HTTP/1.1 200 OK\r\ncontent-le", b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc"])
@pytest.mark.parametrize("ending", ["close", "reset"])
async def test_a_request_is_never_repeated_after_the_connection_breaks(http: HttpClient, method: str, part: bytes, ending: str):
    async def handle(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.target == "/warm":
            writer.write(response("warm"))
            return
        writer.write(part)
        await writer.drain()
        if ending == "reset":
            reset(writer)
        writer.close()

    async with serve(handle) as server:
        await fetch(http, server.url + "/warm")  # so that the kept-alive connection breaks, after which aiohttp would retry by itself
        counter = RequestCounter()
        with pytest.raises(ReplyLost) as caught:
            await fetch(http, server.url + "/break", method=method, counter=counter)
        assert caught.value.maybe_done
        assert counter.requests == 1
        assert [request.target for request in server.requests] == ["/warm", "/break"]


async def test_a_chunked_body_without_end_is_a_lost_reply(http: HttpClient):
    async def handle(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.writelines(chunked([b"abc"], end=False))
        writer.close()

    async with serve(handle) as server:
        with pytest.raises(ReplyLost):
            await fetch(http, server.url)
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    "handler",
    [
        answering(response(b"x" * 100_001)),
        answering(b"".join(chunked([b"x" * 1000] * 101))),
        dripping(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 4000),
    ],
    ids=["announced", "chunked", "endless"],
)
async def test_bodies_over_the_limit_are_malformed(http: HttpClient, handler: Handler):
    async with serve(handler) as server:
        with pytest.raises(Malformed, match="more than 100000 bytes"):
            await fetch(http, server.url)
        assert len(server.requests) == 1


async def test_a_body_of_exactly_the_limit_is_read(http: HttpClient):
    async with serve(answering(response(b"x" * 100_000))) as server:
        assert (await fetch(http, server.url))[1] == b"x" * 100_000


async def test_only_the_start_of_a_large_error_body_is_read(http: HttpClient):
    async with (
        serve(answering(response(b"x" * 10_000_000, 500))) as server,
        http.request("GET", server.url, peer=PEER, deadline_s=20, max_bytes=100_000) as answer,
    ):
        assert answer.status == 500
        assert len(await answer.read_prefix()) == 16 * 1024


async def test_compressed_bodies_are_not_read(http: HttpClient):
    bomb = gzip.compress(gzip.compress(b"\0" * 50_000_000))
    async with serve(answering(response(bomb, content_encoding="gzip, gzip"))) as server:
        with pytest.raises(Malformed, match="compressed"):
            await fetch(http, server.url)
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 1000 + b"\r\n",
    ],
    ids=["not HTTP", "a huge header", "too many headers"],
)
async def test_invalid_http_is_malformed(http: HttpClient, answer: bytes):
    async with serve(answering(answer)) as server:
        with pytest.raises(Malformed) as caught:
            await fetch(http, server.url)
        assert caught.value.maybe_done
        assert len(server.requests) == 1


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "nothing", "http://", "http://127.0.0.1:99999/", "http://[::1/"])
async def test_invalid_urls_are_rejected(http: HttpClient, url: str):
    with pytest.raises(Rejected):
        await fetch(http, url)


@pytest.mark.parametrize(
    "handler", [never, dripping(b"HTTP/1.1 200 OK\r\ncontent-length: 90000\r\n\r\n", b"x")], ids=["before", "within the body"]
)
async def test_cancelling_aborts_the_request_in_flight(http: HttpClient, handler: Handler):
    async with serve(handler) as server:
        task = asyncio.create_task(fetch(http, server.url))
        await asyncio.wait_for(server.arrived.wait(), 20)
        assert not server.gone.is_set()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(server.gone.wait(), 20)


async def test_errors_of_the_caller_pass_through_unchanged(http: HttpClient):
    async with serve(answering(response("ok"))) as server:
        with pytest.raises(ZeroDivisionError):  # noqa: PT012
            async with http.request("GET", server.url, peer=PEER, deadline_s=20, max_bytes=10) as answer:
                async for _ in answer:
                    raise ZeroDivisionError
        assert len(server.requests) == 1


async def test_a_client_works_on_two_event_loops(http: HttpClient):
    async def in_another_loop() -> tuple[int, bytes]:
        async with serve(answering(response("there"))) as server:
            try:
                return await fetch(http, server.url)
            finally:
                await http.aclose()

    async with serve(answering(response("here"))) as server:
        assert (await fetch(http, server.url))[1] == b"here"
        assert (await asyncio.to_thread(asyncio.run, in_another_loop()))[1] == b"there"
        assert (await fetch(http, server.url))[1] == b"here"
    assert server.connections == 1


async def test_aiohttp_still_has_the_attribute_that_turns_retries_off():
    """`HttpClient` sets this private attribute to False; without it, aiohttp repeats requests by itself."""
    async with aiohttp.ClientSession() as session:
        assert session._retry_connection is True
