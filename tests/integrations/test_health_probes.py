"""Asking whether a tool's server is there: what counts as an answer, and what does not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from uuid_utils.compat import uuid7

from engine.errors import Rejected
from engine.tools.http_config import check_configuration
from engine.turn.context import IntegrationSpec
from integrations.tools.health_probes import probed
from tests.support.http_servers import Request, Server, reset, serve
from tests.support.servers import free_port
from tests.support.tool_calls import MakeOutside

NO_NAMES = ["a..b", ".example.com", "a" * 64 + ".example", "xn--", "xn--zz--"]


def spec(configuration: dict[str, Any], kind: str = "custom_tool", **secrets: str) -> IntegrationSpec:
    return IntegrationSpec(uuid7(), kind, configuration, secrets=secrets)


async def said(writer: asyncio.StreamWriter, status: int, extra: str = "") -> None:
    writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: 2\r\n{extra}\r\nok".encode())
    await writer.drain()


@pytest.mark.parametrize("status", [200, 302, 401, 404, 405, 429, 501, 500, 502, 503, 504])
@pytest.mark.parametrize("declared", [False, True])
async def test_which_statuses_are_answers(outside: MakeOutside, status: int, declared: bool):
    """500 is one where nobody has said that it can be asked this."""

    async def handler(_: Request, writer: asyncio.StreamWriter) -> None:
        await said(writer, status)
        writer.close()

    async with serve(handler) as server:
        health = {"health": {"url": f"{server.url}/health"}} if declared else {}
        error = await probed(spec({"url": f"{server.url}/orders"} | health), outside(), 5)

    assert (error is None) == (status < (500 if declared else 501) or status == 501), error


async def asked(outside: MakeOutside, configure: Any, **secrets: str) -> Request:
    async def handler(_: Request, writer: asyncio.StreamWriter) -> None:
        await said(writer, 200)

    async with serve(handler) as server:
        assert await probed(spec(configure(server), **secrets), outside(), 5) is None
        (request,) = server.requests
    return request


async def test_without_more_it_asks_for_the_address_itself_and_shows_no_secret(outside: MakeOutside):
    def configure(server: Server) -> dict[str, Any]:
        return {"url": f"{server.url}/orders/{{order}}?all=1", "secret_headers": {"Authorization": "Bearer {{key}}"}}

    request = await asked(outside, configure, key="s3cret")

    assert (request.method, request.target) == ("OPTIONS", "/orders/0")
    assert "s3cret" not in str(request.headers)


async def test_it_asks_what_it_was_told_to_ask(outside: MakeOutside):
    def configure(server: Server) -> dict[str, Any]:
        health = {"url": f"{server.url}/health", "method": "GET", "query": {"deep": "1"}, "secret_headers": {"X-Key": "key"}}
        return {"url": f"{server.url}/orders", "health": health}

    request = await asked(outside, configure, key="s3cret")

    assert (request.method, request.target, request.headers["x-key"]) == ("GET", "/health?deep=1", "s3cret")


async def test_silence_no_server_and_no_http_are_failures(outside: MakeOutside):
    async def silent(_: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    async def babbling(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        writer.close()

    async with serve(silent) as quiet, serve(babbling) as mail:
        made = outside()
        assert "did not answer within 0.3 s" in str(await probed(spec({"url": quiet.url}), made, 0.3))
        assert await probed(spec({"url": mail.url}), made, 5)
    assert await probed(spec({"url": f"http://127.0.0.1:{free_port()}/"}), made, 5)


async def test_a_server_that_breaks_off_at_options_is_asked_with_head(outside: MakeOutside):
    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.method == "OPTIONS":
            reset(writer)
        else:
            writer.write(b"HTTP/1.1 200 X\r\nContent-Length: 0\r\n\r\n")

    async with serve(handler) as server:
        assert await probed(spec({"url": server.url}), outside(), 5) is None

    assert [request.method for request in server.requests] == ["OPTIONS", "HEAD"]


async def test_a_server_that_is_silent_at_options_is_asked_with_head_in_the_same_time(outside: MakeOutside):
    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.method == "OPTIONS":
            await asyncio.sleep(60)
        writer.write(b"HTTP/1.1 200 X\r\nContent-Length: 0\r\n\r\n")

    async with serve(handler) as server:
        assert await probed(spec({"url": server.url}), outside(), 4) is None

    assert [request.method for request in server.requests] == ["OPTIONS", "HEAD"]


async def test_a_slow_answer_to_options_is_one_whatever_becomes_of_head(outside: MakeOutside):
    asked_with_head = asyncio.Event()

    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.method == "HEAD":
            asked_with_head.set()
            reset(writer)
        else:
            await asked_with_head.wait()
            await asyncio.sleep(0.1)
            await said(writer, 200)

    async with serve(handler) as server:
        assert await probed(spec({"url": server.url}), outside(), 4) is None


@pytest.mark.parametrize("body", [b"x" * 300_000, b"x"], ids=["endless", "broken off"])
async def test_a_body_does_not_matter(outside: MakeOutside, body: bytes):
    async def handler(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 X\r\nContent-Length: 999999999\r\n\r\n" + body)
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.close()

    async with serve(handler) as server:
        assert await probed(spec({"url": server.url, "health": {"url": server.url}}), outside(), 5) is None


async def test_a_forbidden_address_is_never_asked(outside: MakeOutside):
    async def handler(_: Request, writer: asyncio.StreamWriter) -> None:
        await said(writer, 200)

    async with serve(handler) as server:
        error = await probed(spec({"url": server.url}), outside(allowed_networks=""), 5)

    assert "not set up correctly" in str(error)
    assert server.connections == 0


@pytest.mark.parametrize("host", NO_NAMES)
async def test_a_host_that_is_no_name_is_not_set_up_correctly(outside: MakeOutside, host: str):
    error = await probed(spec({"url": f"http://{host}/"}), outside(), 5)

    assert error == "It is not set up correctly: The tool's server was not asked: its address is not a valid address"


async def test_a_kind_that_nobody_can_ask_answers(outside: MakeOutside):
    assert await probed(spec({}, kind="mcp_server"), outside(), 5) is None


@pytest.mark.parametrize(
    ("health", "words"),
    [
        ("https://x.example", "health must be an object"),
        ({"method": "GET"}, "health.url is required"),
        ({"url": "https://x.example", "method": "POST"}, "health.method must be one of GET, HEAD, OPTIONS"),
        ({"url": "https://x.example/{order}"}, "health.url must not have placeholders"),
        ({"url": "https://x.example", "every": 3}, "health has an unknown field"),
        ({"url": "https://x.example", "secret_headers": {"X-Key": "other"}}, "the secret 'other', which is not given"),
    ],
)
def test_a_wrong_health_is_refused_when_it_is_saved(health: Any, words: str):
    with pytest.raises(Rejected, match=words):
        check_configuration({"url": "https://x.example", "health": health}, {"key"})
