"""SSRF guard: decides which addresses a tool may reach, at the moment of connecting.

A name is resolved once, every resulting address is checked, and the connection uses a checked address. DNS rebinding fails because
there is no second lookup. Spellings of an address (`2130706433`, `0x7f.1`, full-width dots) do not matter, because parsed addresses
are checked, not strings.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import httpx
from aiohttp import AddrInfoType
from aiohttp.abc import AbstractResolver, ResolveResult

Lookup = Callable[[str, int], Awaitable[Sequence[str]]]

# IANA's special-purpose registry, and the clouds' metadata services at ordinary addresses.
_DENIED_V4: tuple[tuple[IPv4Network, str], ...] = tuple(
    (IPv4Network(network), kind)
    for network, kind in (
        ("168.63.129.16/32", "metadata"),
        ("169.254.169.254/32", "metadata"),
        ("100.100.100.200/32", "metadata"),
        ("192.0.0.192/32", "metadata"),
        ("0.0.0.0/8", "unspecified"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "carrier-grade NAT"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved"),
        ("192.0.2.0/24", "documentation"),
        ("192.31.196.0/24", "reserved"),
        ("192.52.193.0/24", "reserved"),
        ("192.88.99.0/24", "6to4 relay"),
        ("192.168.0.0/16", "private"),
        ("192.175.48.0/24", "reserved"),
        ("198.18.0.0/15", "benchmarking"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
    )
)
# For IPv6, only global unicast is public, except for these networks.
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_DENIED_V6: tuple[tuple[IPv6Network, str], ...] = tuple(
    (IPv6Network(network), kind)
    for network, kind in (
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("fd00:ec2::254/128", "metadata"),
        ("64:ff9b::/96", "NAT64"),
        ("64:ff9b:1::/48", "NAT64"),
        ("fc00::/7", "private"),
        ("fe80::/10", "link-local"),
        ("ff00::/8", "multicast"),
        ("2001::/32", "Teredo"),
        ("2001::/23", "reserved"),
        ("2001:db8::/32", "documentation"),
        ("2002::/16", "6to4"),
        ("2620:4f:8000::/48", "reserved"),
        ("3fff::/20", "documentation"),
    )
)


class AddressRefused(OSError):
    """The guard refuses to connect. The message never contains the address, which tenants must not learn."""


_DEFAULT_PORTS = {"http": 80, "https": 443}


def denied_kind(address: IPv4Address | IPv6Address) -> str | None:
    """Return why `address` is not on the public internet ("loopback", "private", "metadata" …), or None if it is.

    IPv4-mapped IPv6 addresses are checked as IPv4. Tunnels (NAT64, 6to4, Teredo) are always refused.
    """
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return denied_kind(address.ipv4_mapped)
        for network6, kind in _DENIED_V6:
            if address in network6:
                return kind
        return None if address in _GLOBAL_UNICAST and address.is_global else "reserved"
    for network4, kind in _DENIED_V4:
        if address in network4:
            return kind
    return None if address.is_global else "reserved"


class AddressGuard(AbstractResolver):
    """Resolver and socket factory of the tools' aiohttp client; refuses addresses that are neither public nor allowed.

    `lookup` resolves a name to addresses. The default uses getaddrinfo on a thread pool of its own, so that a tenant's slow name
    server delays no other lookups of the process.
    """

    def __init__(
        self,
        allowed_networks: Iterable[IPv4Network | IPv6Network] = (),
        allowed_ports: Iterable[int] = (80, 443),
        lookup: Lookup | None = None,
    ) -> None:
        self._allowed_networks = tuple(ip_network(network) for network in allowed_networks)
        self._allowed_ports = frozenset(allowed_ports)
        self._lookup = lookup or self._getaddrinfo_in_thread
        self._threads: ThreadPoolExecutor | None = None

    def check(self, address: str, port: int) -> None:
        """Check that a connection to `address` (an IP address, not a name) at `port` is allowed.

        Raises:
            AddressRefused: it is not.
        """
        try:
            parsed = ip_address(address)
        except ValueError:
            raise AddressRefused("the address is not valid") from None
        if self._is_allowed(parsed):
            return
        if kind := denied_kind(parsed):
            article = "an" if kind[0] in "aeiou" else "a"
            raise AddressRefused(f"the host is at {article} {kind} address, which tools may not reach")
        if port not in self._allowed_ports:
            raise AddressRefused(f"port {port} is not among the ports that tools may use")

    def check_url(self, url: httpx.URL) -> None:
        """Check a URL before it is requested; a host name is checked again by its addresses when it is resolved.

        Raises:
            AddressRefused: not http or https, no host, a user name or password, or a forbidden IP address.
        """
        if url.scheme not in _DEFAULT_PORTS:
            raise AddressRefused("only http and https are allowed")
        if not url.host:
            raise AddressRefused("the address has no host")
        if url.userinfo:
            raise AddressRefused("the address must not carry a user name or password")
        try:
            ip_address(url.host)
        except ValueError:
            return  # a name, or an unusual spelling of an address, which `resolve` checks
        self.check(url.host, url.port or _DEFAULT_PORTS[url.scheme])

    def socket_for(self, info: AddrInfoType) -> socket.socket:
        """Return a socket for the address that aiohttp is about to connect to. Checks IP addresses in URLs too, which skip `resolve`."""
        family, kind, proto, _, sockaddr = info
        self.check(str(sockaddr[0]), int(sockaddr[1]))
        return socket.socket(family=family, type=kind, proto=proto)

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[ResolveResult]:
        """Return the addresses of `host`. Raises AddressRefused if any of them is forbidden."""
        addresses = await self._lookup(host, port)
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "no address for this name")
        for address in addresses:
            self.check(address, port)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in dict.fromkeys(addresses)
        ]

    async def close(self) -> None:
        """Shut down the lookup threads."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None

    def _is_allowed(self, address: IPv4Address | IPv6Address) -> bool:
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        return any(address in network or (mapped is not None and mapped in network) for network in self._allowed_networks)

    async def _getaddrinfo_in_thread(self, host: str, port: int) -> Sequence[str]:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(max_workers=16, thread_name_prefix="resolve")
        return await asyncio.get_running_loop().run_in_executor(self._threads, _getaddrinfo, host, port)


def _getaddrinfo(host: str, port: int) -> list[str]:
    return [str(sockaddr[0]) for *_, sockaddr in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
