"""The SSRF guard: tables of addresses and spellings, and real listeners that must never be connected to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from ipaddress import ip_address, ip_network

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ProviderDown, Rejected
from integrations.http import HttpClient, RequestCounter
from integrations.ssrf_guard import AddressGuard, AddressRefused, denied_kind
from tests.support.http_servers import Server, answering, response, serve

FORBIDDEN = {
    "loopback": ["127.0.0.1", "127.0.0.2", "127.255.255.254", "::1", "::ffff:127.0.0.1", "::ffff:7f00:1"],
    "unspecified": ["0.0.0.0", "0.1.2.3", "::", "::ffff:0.0.0.0"],
    "private": ["10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "fc00::1", "fd12:3456::1", "::ffff:10.0.0.1"],
    "link-local": ["169.254.0.1", "169.254.170.2", "fe80::1", "fe80::1%1", "::ffff:169.254.0.1"],
    "carrier-grade NAT": ["100.64.0.1", "100.127.255.255"],
    "metadata": ["169.254.169.254", "100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "::ffff:169.254.169.254"],
    "multicast": ["224.0.0.1", "239.255.255.250", "ff02::1", "ff0e::1"],
    "NAT64": ["64:ff9b::a9fe:a9fe", "64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::1"],
    "6to4": ["2002:a9fe:a9fe::", "2002:7f00:1::1"],
    "6to4 relay": ["192.88.99.1"],
    "Teredo": ["2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2"],
    "reserved": [
        "240.0.0.1",
        "255.255.255.255",
        "192.0.0.8",
        "192.31.196.1",
        "::127.0.0.1",
        "::2",
        "100::1",
        "2001:2::1",
        "4000::1",
        "5f00::1",
        "fec0::1",
    ],
    "documentation": ["192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1"],
    "benchmarking": ["198.18.0.1", "198.19.255.255"],
}
PUBLIC = [
    "8.8.8.8",
    "1.1.1.1",
    "93.184.216.34",
    "172.32.0.1",
    "100.128.0.1",
    "192.0.1.1",
    "168.63.129.17",
    "2606:4700:4700::1111",
    "2a00:1450:4001::8a",
    "::ffff:8.8.8.8",
]


@pytest.mark.parametrize(("kind", "address"), [(kind, address) for kind, addresses in FORBIDDEN.items() for address in addresses])
def test_forbidden_addresses(kind: str, address: str):
    assert denied_kind(ip_address(address)) == kind
    with pytest.raises(AddressRefused) as caught:
        AddressGuard().check(address, 443)
    assert address not in str(caught.value)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str):
    guard = AddressGuard()
    guard.check(address, 80)
    guard.check(address, 443)
    with pytest.raises(AddressRefused, match="port 22"):
        guard.check(address, 22)


@given(st.ip_addresses())
def test_addresses_that_python_calls_not_global_are_forbidden(address):
    if not address.is_global or address.is_multicast:
        assert denied_kind(address) is not None


def test_allowed_networks_may_be_reached_at_any_port():
    guard = AddressGuard([ip_network("127.0.0.0/8"), ip_network("fd00::/8")])
    for address in ("127.0.0.1", "::ffff:127.0.0.1", "fd00:ec2::254"):
        guard.check(address, 5432)
    for address in ("10.0.0.1", "::1", "64:ff9b::7f00:1", "not an address", ""):
        with pytest.raises(AddressRefused):
            guard.check(address, 443)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://8.8.8.8/",
        "file:///etc/passwd",
        "gopher://8.8.8.8/",
        "//8.8.8.8/",
        "http:///x",
        "http://user:pw@8.8.8.8/",
        "http://127.0.0.1/",
        "http://[::1]/",
        "http://8.8.8.8:22/",
    ],
)
def test_urls_refused_without_resolving(url: str):
    with pytest.raises(AddressRefused):
        AddressGuard().check_url(httpx.URL(url))


@pytest.fixture
async def listener() -> AsyncIterator[Server]:
    async with serve(answering(response("secret"))) as server:
        yield server


async def attempt(guard: AddressGuard, url: str) -> Exception | None:
    http, counter = HttpClient(guard), RequestCounter()
    try:
        async with http.request("GET", url, peer="The tool", deadline_s=20, max_bytes=1000, counter=counter) as answer:
            await answer.body()
    except Exception as error:
        assert counter.requests == 0
        return error
    finally:
        await http.aclose()
    return None


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "017700000001", "127。0。0。1", "１２７.0.0.1",
        "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "localhost", "localhost.", "LOCALHOST", "0.0.0.0", "0", "[::]",
    ],
)  # fmt: skip
async def test_no_spelling_of_loopback_reaches_a_listener(listener: Server, host: str):
    # The port is allowed, so that only the address is refused.
    error = await attempt(AddressGuard(allowed_ports=[listener.port]), f"http://{host}:{listener.port}/")
    # Some systems resolve a name with a trailing dot, others do not; in both cases nothing is connected to.
    assert isinstance(error, (Rejected, ProviderDown) if host.endswith(".") else Rejected)
    assert listener.connections == 0


async def test_an_allowed_network_reaches_the_listener(listener: Server):
    assert await attempt(AddressGuard([ip_network("127.0.0.0/8"), ip_network("::1/128")]), f"http://localhost:{listener.port}/") is None
    assert listener.connections >= 1


def guard_with_lookups(*sets: Sequence[str]) -> tuple[list[str], AddressGuard]:
    looked_up: list[str] = []
    remaining: Iterator[Sequence[str]] = iter(sets)

    async def lookup(host: str, _port: int) -> Sequence[str]:
        looked_up.append(host)
        return next(remaining, sets[-1])

    return looked_up, AddressGuard(allowed_ports=range(1, 65536), lookup=lookup)


async def test_one_forbidden_address_refuses_the_name(listener: Server):
    for found in (["127.0.0.1"], ["203.0.113.9", "127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["8.8.8.8", "::1"], ["169.254.169.254"]):
        looked_up, guard = guard_with_lookups(found)
        error = await attempt(guard, f"http://rebind.example:{listener.port}/")
        assert isinstance(error, Rejected)
        assert looked_up == ["rebind.example"]
    assert listener.connections == 0


async def test_a_rebinding_name_never_reaches_loopback(listener: Server, monkeypatch: pytest.MonkeyPatch):
    """The first lookup returns a public address, later ones loopback; the connection uses the checked address."""
    connected: list[str] = []

    async def record(sock: socket.socket, address: tuple[str, int]) -> None:
        connected.append(address[0])
        raise ConnectionRefusedError(111, "no route in this test")

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", record)
    looked_up, guard = guard_with_lookups(["93.184.216.34"], ["127.0.0.1"])
    http = HttpClient(guard)
    for _ in range(3):
        with pytest.raises(Exception):  # noqa: B017
            async with http.request("GET", f"http://rebind.example:{listener.port}/", peer="The tool", deadline_s=5, max_bytes=10):
                pass
    await http.aclose()
    assert set(connected) == {"93.184.216.34"}
    assert len(looked_up) >= 1
    assert listener.connections == 0


async def test_socket_creation_refuses_forbidden_addresses():
    guard = AddressGuard()
    with pytest.raises(AddressRefused):
        guard.socket_for((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80)))
    guard.socket_for((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("8.8.8.8", 80))).close()
