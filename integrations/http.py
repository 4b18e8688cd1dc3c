"""The shared HTTP client: httpx's API on aiohttp's engine, with a deadline on the clock, a byte limit and errors of our own tree.

`HttpClients` holds two of them: one for the model providers an operator configured, one for tools, behind the address guard.
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
# Shorter than what servers commonly keep: a request sent on a connection that is just being closed has an unknown outcome.
KEEPALIVE_S = 15.0
_ERROR_BODY_BYTES = 16 * 1024

# httpx logs every URL at INFO, and a tool's URL carries arguments.
logging.getLogger("httpx").setLevel(logging.WARNING)


@dataclass(slots=True)
class RequestCounter:
    """Counts the requests that began to leave this process on behalf of one caller."""

    requests: int = 0


_sending: ContextVar[RequestCounter | None] = ContextVar("sending", default=None)


async def _count_request(_session: aiohttp.ClientSession, _context: SimpleNamespace, _sent: object) -> None:
    counter = _sending.get()
    if counter is not None:
        counter.requests += 1


class Reply:
    """An answer whose headers are here and whose body is still coming; an async iterator over the body's bytes as they arrive."""

    def __init__(self, response: httpx.Response, whom: str, max_bytes: int) -> None:
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self._raw: AsyncGenerator[bytes, None] = response.aiter_raw()  # type: ignore[assignment]
        self._whom = whom
        self._max_bytes = max_bytes
        self._bytes = 0

    @property
    def ok(self) -> bool:
        """The status is 2xx."""
        return 200 <= self.status < 300

    @property
    def media_type(self) -> str:
        """The content type without its parameters, in lower case; "" where there is none."""
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
            Malformed: it is longer than the limit, or compressed though we asked for plain bytes.
        """
        self.refuse_encoding()
        length = self.headers.get("content-length", "")
        if length.isdigit() and int(length[:20]) > self._max_bytes:
            raise self._too_long()
        return b"".join([chunk async for chunk in self])

    async def beginning(self) -> bytes:
        """Return the first kilobytes of an error's body, or b"" if it is compressed; never more, whatever its length."""
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
        """Read to the end if that comes soon, so that the connection can be used again; else let it be closed."""
        try:
            async with asyncio.timeout(within_s):
                async for _ in self:
                    pass
        except TimeoutError:
            return

    def refuse_encoding(self) -> None:
        """Raise Malformed if the body is compressed: a few bytes of it may stand for gigabytes."""
        if encoding := self._encoding():
            raise Malformed(f"{self._whom} sent a compressed answer ({encoding[:20]!r}) though plain bytes were asked for")

    async def aclose(self) -> None:
        """Stop reading."""
        await self._raw.aclose()

    def _encoding(self) -> str:
        encoding = self.headers.get("content-encoding", "").strip().lower()
        return "" if encoding == "identity" else encoding

    def _too_long(self) -> Malformed:
        return Malformed(f"{self._whom} sent more than {self._max_bytes} bytes")


class Http:
    """One pool of connections per running loop, made on first use. `guard` checks every address before it is connected to."""

    def __init__(self, guard: AddressGuard | None = None) -> None:
        self._guard = guard
        self._transports: WeakKeyDictionary[asyncio.AbstractEventLoop, AiohttpTransport] = WeakKeyDictionary()

    @asynccontextmanager
    async def request(
        self,
        method: str,
        url: str,
        *,
        whom: str,
        deadline_s: float,
        max_bytes: int,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        counter: RequestCounter | None = None,
    ) -> AsyncIterator[Reply]:
        """Send one request and give its reply, whatever its status, while the body may still be coming.

        `deadline_s` is wall-clock time for everything up to the end of the `async with` block; `max_bytes` bounds the body;
        `whom` names the other side in error sentences. Redirects are answers like any other. Leaving the block early, or
        cancelling it, aborts the request in flight.

        Raises:
            Rejected: the address is forbidden or not one; nothing was sent.
            ProviderDown: no connection; nothing was sent.
            TimedOut: the deadline passed; `maybe_done` says whether the request had been sent.
            ReplyLost: the connection broke before the reply was whole.
            Malformed: not HTTP, compressed, or more than `max_bytes`.
        """
        counter = counter if counter is not None else RequestCounter()
        before = counter.requests
        _sending.set(counter)
        clock, given = asyncio.timeout(deadline_s), False
        try:
            address = httpx.URL(url)
            if self._guard is not None:
                self._guard.check_url(address)
            async with (
                clock,
                aclosing(await self._send(httpx.Request(method, address, headers=_headers(headers), content=content))) as response,
                aclosing(Reply(response, whom, max_bytes)) as reply,
            ):
                given = True
                yield reply
        except UnicodeError as error:  # of a host that is no name: httpx and the resolver let it through as it is
            if given:
                raise  # the caller's own
            raise error_mapping.of_exception(error, whom, sent=counter.requests > before) from error
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, aiohttp.ClientError, OSError) as error:
            sent = counter.requests > before
            if clock.expired():
                raise TimedOut(f"{whom} did not answer within {deadline_s:.3g} s", maybe_done=sent) from None
            raise error_mapping.of_exception(error, whom, sent=sent) from error

    async def aclose(self) -> None:
        """Close the running loop's client and its connections."""
        transport = self._transports.pop(asyncio.get_running_loop(), None)
        if transport is not None:
            await transport.aclose()
        if self._guard is not None:
            await self._guard.close()

    async def _send(self, request: httpx.Request) -> httpx.Response:
        """Hand a request to the engine. There is no `httpx.AsyncClient` around it: redirects, cookies and authentication are not
        wanted here, and looking for them costs a tenth of a turn's CPU."""
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
                limit=0,  # how much is in flight is the worker's decision
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
        # aiohttp would silently send a GET, PUT or DELETE again when a kept connection breaks; what is sent twice is our decision.
        session._retry_connection = False
        return session


def _headers(given: Mapping[str, str] | None) -> dict[str, str]:
    return {"accept": "*/*", "accept-encoding": "identity", "user-agent": "turnline", **{k.lower(): v for k, v in (given or {}).items()}}


class HttpClients:
    """Both clients of a process: `models` for configured model providers, `tools` behind the address guard.

    `lookup` replaces the system's name resolution for tools, for tests.
    """

    def __init__(self, settings: Settings, *, lookup: Lookup | None = None) -> None:
        self.settings = settings
        self.models = Http()
        self.tools = Http(AddressGuard(settings.allowed_networks, settings.allowed_ports, lookup))

    async def aclose(self) -> None:
        """Close every connection of the running loop."""
        await self.models.aclose()
        await self.tools.aclose()
