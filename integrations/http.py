"""Shared HTTP client: httpx's request types on aiohttp's connections, with wall-clock deadlines, byte limits and our error types.

`HttpClients` holds two clients: one for the model providers that the operator configured, and one for tools, behind the SSRF guard.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import SimpleNamespace
from weakref import WeakKeyDictionary

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from engine.errors import Malformed, TimedOut
from integrations import error_mapping
from integrations.ssrf_guard import AddressGuard, Lookup
from settings import Settings

CONNECT_TIMEOUT_S = 10.0
# Shorter than most servers' keep-alive: a request sent on a connection that the server is closing has an unknown outcome.
KEEPALIVE_S = 15.0
_ERROR_BODY_BYTES = 16 * 1024

# httpx logs every URL at INFO, and a tool's URL contains arguments.
logging.getLogger("httpx").setLevel(logging.WARNING)


@dataclass(slots=True)
class RequestCounter:
    """Number of requests that one caller began to send."""

    requests: int = 0


_current_counter: ContextVar[RequestCounter | None] = ContextVar("current_counter", default=None)


async def _count_request(_session: aiohttp.ClientSession, _context: SimpleNamespace, _params: object) -> None:
    counter = _current_counter.get()
    if counter is not None:
        counter.requests += 1


class HttpResponse:
    """A response whose headers have arrived. Iterating over it asynchronously yields its body as the bytes arrive.

    `peer` names the server in error messages.
    """

    def __init__(self, response: httpx.Response, peer: str, max_bytes: int) -> None:
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self._raw: AsyncGenerator[bytes, None] = response.aiter_raw()  # type: ignore[assignment]
        self._peer = peer
        self._max_bytes = max_bytes
        self._bytes = 0

    @property
    def ok(self) -> bool:
        """True if the status is 2xx."""
        return 200 <= self.status < 300

    @property
    def media_type(self) -> str:
        """The content type in lower case without its parameters; "" if the header is missing."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        chunk = await anext(self._raw)
        self._bytes += len(chunk)
        if self._bytes > self._max_bytes:
            raise self._too_long()
        return chunk

    async def body(self) -> bytes:
        """Return the whole body.

        Raises:
            Malformed: the body exceeds the byte limit, or is compressed although we asked for identity encoding.
        """
        self.reject_compression()
        length = self.headers.get("content-length", "")
        if length.isdigit() and int(length[:20]) > self._max_bytes:
            raise self._too_long()
        return b"".join([chunk async for chunk in self])

    async def read_prefix(self) -> bytes:
        """Return at most the first 16 KiB of the body, for error messages; b"" if the body is compressed."""
        if self._encoding():
            return b""
        parts, size = [], 0
        async for chunk in self:
            parts.append(chunk)
            size += len(chunk)
            if size >= _ERROR_BODY_BYTES:
                break
        return b"".join(parts)[:_ERROR_BODY_BYTES]

    async def drain(self, within_s: float) -> None:
        """Read to the end, so that the connection can be reused; give up after `within_s` seconds, which closes it."""
        try:
            async with asyncio.timeout(within_s):
                async for _ in self:
                    pass
        except TimeoutError:
            return

    def reject_compression(self) -> None:
        """Raise Malformed if the body is compressed: a few bytes could unpack to gigabytes."""
        if encoding := self._encoding():
            raise Malformed(f"{self._peer} sent a compressed answer ({encoding[:20]!r}) though plain bytes were asked for")

    async def aclose(self) -> None:
        """Stop reading."""
        await self._raw.aclose()

    def _encoding(self) -> str:
        encoding = self.headers.get("content-encoding", "").strip().lower()
        return "" if encoding == "identity" else encoding

    def _too_long(self) -> Malformed:
        return Malformed(f"{self._peer} sent more than {self._max_bytes} bytes")


class HttpClient:
    """One connection pool per event loop, created on first use. `guard` checks every address before it is connected to."""

    def __init__(self, guard: AddressGuard | None = None) -> None:
        self._guard = guard
        self._transports: WeakKeyDictionary[asyncio.AbstractEventLoop, AiohttpTransport] = WeakKeyDictionary()

    @asynccontextmanager
    async def request(
        self,
        method: str,
        url: str,
        *,
        peer: str,
        deadline_s: float,
        max_bytes: int,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        counter: RequestCounter | None = None,
    ) -> AsyncIterator[HttpResponse]:
        """Send one request and yield its response, whatever its status, as soon as the headers have arrived.

        `deadline_s` is wall-clock time for everything up to the end of the `async with` block; `max_bytes` limits the body;
        `peer` names the server in error messages. Redirects are not followed. Leaving the block early, or cancelling it, aborts
        the request.

        Raises:
            Rejected: the URL is invalid or forbidden; nothing was sent.
            ProviderDown: no connection; nothing was sent.
            TimedOut: the deadline passed; `maybe_done` is true if the request had been sent.
            ReplyLost: the connection broke before the response was complete.
            Malformed: not HTTP, compressed, or more than `max_bytes`.
        """
        counter = counter if counter is not None else RequestCounter()
        before = counter.requests
        _current_counter.set(counter)
        deadline, yielded = asyncio.timeout(deadline_s), False
        try:
            parsed_url = httpx.URL(url)
            if self._guard is not None:
                self._guard.check_url(parsed_url)
            async with (
                deadline,
                aclosing(await self._send(httpx.Request(method, parsed_url, headers=_headers(headers), content=content))) as raw,
                aclosing(HttpResponse(raw, peer, max_bytes)) as response,
            ):
                yielded = True
                yield response
        except UnicodeError as error:  # raised for an invalid host name, which httpx and the resolver pass on unchecked
            if yielded:
                raise  # the caller's own error
            raise error_mapping.of_exception(error, peer, sent=counter.requests > before) from error
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, aiohttp.ClientError, OSError) as error:
            sent = counter.requests > before
            if deadline.expired():
                raise TimedOut(f"{peer} did not answer within {deadline_s:.3g} s", maybe_done=sent) from None
            raise error_mapping.of_exception(error, peer, sent=sent) from error

    async def aclose(self) -> None:
        """Close the running loop's connections."""
        transport = self._transports.pop(asyncio.get_running_loop(), None)
        if transport is not None:
            await transport.aclose()
        if self._guard is not None:
            await self._guard.close()

    async def _send(self, request: httpx.Request) -> httpx.Response:
        """Send a request through the running loop's transport.

        There is no `httpx.AsyncClient` around it: we want no redirects, cookies or authentication, and checking for them costs a
        tenth of a turn's CPU.
        """
        loop = asyncio.get_running_loop()
        transport = self._transports.get(loop)
        if transport is None:
            transport = self._transports[loop] = AiohttpTransport(client=self._session, trust_env=False)
        request.extensions["timeout"] = {"connect": CONNECT_TIMEOUT_S}
        return await transport.handle_async_request(request)

    def _session(self) -> aiohttp.ClientSession:
        tracing = aiohttp.TraceConfig()
        tracing.on_request_headers_sent.append(_count_request)
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,  # the worker limits concurrency
                keepalive_timeout=KEEPALIVE_S,
                ssl=ssl.create_default_context(),
                resolver=self._guard,
                socket_factory=self._guard.socket_for if self._guard is not None else None,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),
            trace_configs=[tracing],
        )
        # aiohttp silently repeats a GET, PUT or DELETE when a kept-alive connection breaks; only a tool's effect may decide that.
        # The attribute is private: aiohttp is pinned, and tests/integrations/test_http.py fails if it disappears.
        session._retry_connection = False
        return session


def _headers(given: Mapping[str, str] | None) -> dict[str, str]:
    return {"accept": "*/*", "accept-encoding": "identity", "user-agent": "turnline", **{k.lower(): v for k, v in (given or {}).items()}}


class HttpClients:
    """Both clients of a process: `models` for the configured model providers, `tools` behind the SSRF guard.

    `lookup` replaces the system's name resolution for tools; only tests pass it.
    """

    def __init__(self, settings: Settings, *, lookup: Lookup | None = None) -> None:
        self.settings = settings
        self.models = HttpClient()
        self.tools = HttpClient(AddressGuard(settings.allowed_networks, settings.allowed_ports, lookup))

    async def aclose(self) -> None:
        """Close the running loop's connections."""
        await self.models.aclose()
        await self.tools.aclose()
