"""Health probes of HTTP tools: the configured `health` request, or OPTIONS and HEAD at the tool's own address."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from urllib.parse import urlencode, urlsplit, urlunsplit

from engine.errors import Malformed, ProviderDown, ReplyLost, TimedOut, TurnlineError
from engine.tools.http_config import DEFAULT_HEALTH_METHOD, PLACEHOLDER, fill_secret
from engine.tools.spec import IntegrationSpec
from integrations.http import HttpClient

PEER = "The tool's server"
_MAX_BYTES = 64 * 1024
_DRAIN_S = 1.0
_NOT_IMPLEMENTED = 501  # counts as healthy: the server is up, and does not know the method
_GATEWAY_ERRORS = frozenset({502, 503, 504})  # a proxy without a working server behind it


async def probe(spec: IntegrationSpec, http: HttpClient, deadline_s: float) -> None:
    """Send the configured `health` request; without one, OPTIONS to the tool's address, without secrets.

    A configured health page reports any failure by a 5xx. Elsewhere a 500 may only mean that the server cannot handle OPTIONS, so
    only gateway errors count as failures, and a server that drops or ignores OPTIONS is sent a HEAD as well.

    Raises:
        TurnlineError: no connection, no answer in time, not HTTP, or a status that means failure.
    """
    health = spec.configuration.get("health")
    if health:
        method = str(health.get("method") or DEFAULT_HEALTH_METHOD).upper()
        url = str(health["url"])
        if health.get("query"):
            url += ("&" if "?" in url else "?") + urlencode(health["query"])
        secret = {name: fill_secret(text, spec.secrets) for name, text in (health.get("secret_headers") or {}).items()}
        headers = {name.lower(): value for name, value in ((health.get("headers") or {}) | secret).items()}
        status = await _status(http, method, url, deadline_s, headers)
        down = status >= 500 and status != _NOT_IMPLEMENTED
    else:
        parts = urlsplit(str(spec.configuration["url"]))
        url = urlunsplit((parts.scheme, parts.netloc, PLACEHOLDER.sub("0", parts.path), "", ""))
        status = await _options_or_head(http, url, deadline_s)
        down = status in _GATEWAY_ERRORS
    if down:
        raise ProviderDown(f"{PEER} answered {status}")


async def _options_or_head(http: HttpClient, url: str, deadline_s: float) -> int:
    """Return the status of OPTIONS, or of HEAD if that is answered first.

    HEAD is sent when OPTIONS breaks, or is unanswered after half of the time.
    """
    ends_at = time.monotonic() + deadline_s
    options = asyncio.create_task(_status(http, "OPTIONS", url, deadline_s))
    requests = [options]
    try:
        await asyncio.wait(requests, timeout=deadline_s / 2)
        if options.done() and not isinstance(options.exception(), (ReplyLost, Malformed)):
            return options.result()
        head = asyncio.create_task(_status(http, "HEAD", url, ends_at - time.monotonic()))
        requests.append(head)
        for answer in asyncio.as_completed(requests):
            with contextlib.suppress(TurnlineError):
                return await answer
        return (options if isinstance(options.exception(), TimedOut) else head).result()
    finally:
        for task in requests:
            task.cancel()
        await asyncio.gather(*requests, return_exceptions=True)


async def _status(http: HttpClient, method: str, url: str, deadline_s: float, headers: Mapping[str, str] | None = None) -> int:
    """Return the response's status. The body may be endless, stalled or broken: the server is up all the same."""
    status: int | None = None
    # A server that is probed every few minutes needs no kept-alive connection; thousands of them would exhaust file descriptors.
    sent = {"connection": "close", **(headers or {})}
    try:
        async with http.request(method, url, peer=PEER, deadline_s=deadline_s, max_bytes=_MAX_BYTES, headers=sent) as response:
            status = response.status
            await response.drain(_DRAIN_S)
    except TurnlineError:
        if status is None:
            raise
    assert status is not None  # noqa: S101 - without a status, an error was raised
    return status
