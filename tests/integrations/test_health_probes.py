"""Health probes of HTTP tools: the request sent, and the answers that count as healthy."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from uuid_utils.compat import uuid7

from engine.errors import Rejected
from engine.tools.http_config import check_configuration
from engine.tools.spec import IntegrationSpec
from integrations.tools.health_probes import probe
from tests.support.http_clients import MakeHttpClients
from tests.support.http_servers import Request, Server, reset, serve
from tests.support.servers import free_port

INVALID_HOSTS = ["a..b", ".example.com", "a" * 64 + ".example", "xn--", "xn--zz--"]


def spec(configuration: dict[str, Any], kind: str = "custom_tool", **secrets: str) -> IntegrationSpec:
    return IntegrationSpec(uuid7(), kind, configuration, secrets=secrets)


async def send_status(writer: asyncio.StreamWriter, status: int, extra: str = "") -> None:
    writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: 2\r\n{extra}\r\nok".encode())
    await writer.drain()


@pytest.mark.parametrize("status", [200, 302, 401, 404, 405, 429, 501, 500, 502, 503, 504])
@pytest.mark.parametrize("configured", [False, True])
async def test_statuses_that_count_as_healthy(make_clients: MakeHttpClients, status: int, configured: bool):
    """A 500 counts as healthy unless a health page is configured."""

    async def handler(_: Request, writer: asyncio.StreamWriter) -> None:
        await send_status(writer, status)
        writer.close()

    async with serve(handler) as server:
        health = {"health": {"url": f"{server.url}/health"}} if configured else {}
        error = await probe(spec({"url": f"{server.url}/orders"} | health), make_clients(), 5)

    assert (error is None) == (status < (500 if configured else 501) or status == 501), error


async def probe_request(make_clients: MakeHttpClients, configure: Any, **secrets: str) -> Request:
    """Probe a server that answers 200; return the request that it got."""

    async def handler(_: Request, writer: asyncio.StreamWriter) -> None:
        await send_status(writer, 200)

    async with serve(handler) as server:
        assert await probe(spec(configure(server), **secrets), make_clients(), 5) is None
        (request,) = server.requests
    return request


async def test_default_probe_is_options_without_secrets(make_clients: MakeHttpClients):
    def configure(server: Server) -> dict[str, Any]:
        return {"url": f"{server.url}/orders/{{order}}?all=1", "secret_headers": {"Authorization": "Bearer {{key}}"}}

    request = await probe_request(make_clients, configure, key="s3cret")

    assert (request.method, request.target) == ("OPTIONS", "/orders/0")
    assert "s3cret" not in str(request.headers)


async def test_configured_probe_is_sent(make_clients: MakeHttpClients):
    def configure(server: Server) -> dict[str, Any]:
        health = {"url": f"{server.url}/health", "method": "GET", "query": {"deep": "1"}, "secret_headers": {"X-Key": "key"}}
        return {"url": f"{server.url}/orders", "health": health}

    request = await probe_request(make_clients, configure, key="s3cret")

    assert (request.method, request.target, request.headers["x-key"]) == ("GET", "/health?deep=1", "s3cret")


async def test_silence_refused_connections_and_garbage_are_failures(make_clients: MakeHttpClients):
    async def silent(_: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    async def smtp_banner(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        writer.close()

    async with serve(silent) as quiet, serve(smtp_banner) as mail:
        clients = make_clients()
        assert "did not answer within 0.3 s" in str(await probe(spec({"url": quiet.url}), clients, 0.3))
        assert await probe(spec({"url": mail.url}), clients, 5)
    assert await probe(spec({"url": f"http://127.0.0.1:{free_port()}/"}), clients, 5)


async def test_head_is_sent_if_the_server_resets_options(make_clients: MakeHttpClients):
    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.method == "OPTIONS":
            reset(writer)
        else:
            writer.write(b"HTTP/1.1 200 X\r\nContent-Length: 0\r\n\r\n")

    async with serve(handler) as server:
        assert await probe(spec({"url": server.url}), make_clients(), 5) is None

    assert [request.method for request in server.requests] == ["OPTIONS", "HEAD"]


async def test_head_is_sent_if_the_server_ignores_options(make_clients: MakeHttpClients):
    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.method == "OPTIONS":
            await asyncio.sleep(60)
        writer.write(b"HTTP/1.1 200 X\r\nContent-Length: 0\r\n\r\n")

    async with serve(handler) as server:
        assert await probe(spec({"url": server.url}), make_clients(), 4) is None

    assert [request.method for request in server.requests] == ["OPTIONS", "HEAD"]


async def test_a_late_answer_to_options_counts_even_if_head_fails(make_clients: MakeHttpClients):
    head_arrived = asyncio.Event()

    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.method == "HEAD":
            head_arrived.set()
            reset(writer)
        else:
            await head_arrived.wait()
            await asyncio.sleep(0.1)
            await send_status(writer, 200)

    async with serve(handler) as server:
        assert await probe(spec({"url": server.url}), make_clients(), 4) is None


@pytest.mark.parametrize("body", [b"x" * 300_000, b"x"], ids=["endless", "broken off"])
async def test_a_broken_body_counts_as_healthy(make_clients: MakeHttpClients, body: bytes):
    async def handler(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 X\r\nContent-Length: 999999999\r\n\r\n" + body)
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.close()

    async with serve(handler) as server:
        assert await probe(spec({"url": server.url, "health": {"url": server.url}}), make_clients(), 5) is None


async def test_forbidden_addresses_are_never_probed(make_clients: MakeHttpClients):
    async def handler(_: Request, writer: asyncio.StreamWriter) -> None:
        await send_status(writer, 200)

    async with serve(handler) as server:
        error = await probe(spec({"url": server.url}), make_clients(allowed_networks=""), 5)

    assert "not set up correctly" in str(error)
    assert server.connections == 0


@pytest.mark.parametrize("host", INVALID_HOSTS)
async def test_an_invalid_host_name_is_a_configuration_error(make_clients: MakeHttpClients, host: str):
    error = await probe(spec({"url": f"http://{host}/"}), make_clients(), 5)

    assert error == "It is not set up correctly: The tool's server was not contacted: its address is not a valid address"


async def test_integrations_of_unknown_type_count_as_healthy(make_clients: MakeHttpClients):
    assert await probe(spec({}, kind="mcp_server"), make_clients(), 5) is None


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
def test_invalid_health_configuration_is_rejected(health: Any, words: str):
    with pytest.raises(Rejected, match=words):
        check_configuration({"url": "https://x.example", "health": health}, {"key"})
