"""The sandbox's HTTP parser and connections."""

from __future__ import annotations

import asyncio
import json

import pytest

from sandbox.connection import Malformed, RequestBuffer


def parse(*parts: bytes) -> list[tuple[str, bytes]]:
    buffer, taken = RequestBuffer(), []
    for part in parts:
        buffer.buffer += part
        while request := buffer.take():
            taken.append((request.path, request.body))
    return taken


REQUESTS = (
    b"POST /a%20b?x=1 HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"
    b"POST /c HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2\r\nde\r\n1\r\nf\r\n0\r\n\r\n"
    b"GET / HTTP/1.1\r\n\r\n"
)


@pytest.mark.parametrize("size", [1, 2, 7, 50, 1000])
def test_requests_are_parsed_from_chunks_of_any_size(size):
    parts = [REQUESTS[at : at + size] for at in range(0, len(REQUESTS), size)]
    assert parse(*parts) == [("/a b", b"abc"), ("/c", b"def"), ("/", b"")]


@pytest.mark.parametrize(
    "bad",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/2\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 99999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"x" * 70_000,
    ],
)
def test_invalid_http_is_refused(bad):
    with pytest.raises(Malformed):
        parse(bad)


async def test_pipelined_requests_are_answered_in_order(sandbox):
    reader, writer = await asyncio.open_connection("127.0.0.1", sandbox.port)
    for number in range(3):
        writer.write(f"GET /tools/echo?n={number}&latency_ms={20 - 10 * number} HTTP/1.1\r\n\r\n".encode())
    writer.write(b"nonsense\r\n\r\n")
    text = (await reader.read(-1)).decode()
    assert [text.index(f'"n":{number}') for number in range(3)] == sorted(text.index(f'"n":{number}') for number in range(3))
    assert "HTTP/1.1 400" in text
    writer.close()


async def test_connection_close_header_closes_the_connection(sandbox):
    reader, writer = await asyncio.open_connection("127.0.0.1", sandbox.port)
    writer.write(b"GET /tools/echo?n=1 HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert json.loads((await reader.read(-1)).split(b"\r\n\r\n")[1]) == {"n": 1}
    writer.close()


async def test_a_slow_reader_gets_a_large_body_completely(sandbox):
    reader, writer = await asyncio.open_connection("127.0.0.1", sandbox.port, limit=1024)
    writer.write(b"GET /tools/echo?fault=oversized HTTP/1.1\r\n\r\nGET /tools/last HTTP/1.1\r\nConnection: close\r\n\r\n")
    (connection,) = sandbox._connections
    async with asyncio.timeout(20):
        while not connection._buffer_full:
            await asyncio.sleep(0.01)
    assert connection._transport.get_write_buffer_size() < 1_000_000, "the rest is produced only when the client has read"
    text = await reader.read(-1)
    assert len(text) > 10_000_000
    assert b'"tool":"last"' in text[-200:]
    writer.close()
