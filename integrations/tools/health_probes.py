"""Asking whether what a tool is mapped to is there: one small function for each `integration_type`, without any effect."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import urlencode, urlsplit, urlunsplit

from engine.errors import Malformed, ProviderDown, Rejected, ReplyLost, TimedOut, TurnlineError
from engine.tools.http_config import DEFAULT_HEALTH_METHOD, PLACEHOLDER, fill_secret
from engine.turn.context import IntegrationSpec
from integrations.http import HttpClients

WHOM = "The tool's server"
_MAX_BYTES = 64 * 1024
_DRAIN_S = 1.0
NOT_IMPLEMENTED = 501  # an answer: the server is there, and does not know the method
# What a proxy says where nobody is behind it.
NOBODY_THERE = frozenset({502, 503, 504})

Probe = Callable[[IntegrationSpec, HttpClients, float], Awaitable[None]]
"""Returns where there was an answer, within so many seconds. Raises TurnlineError where there was none."""


async def custom_tool(integration: IntegrationSpec, outside: HttpClients, deadline_s: float) -> None:
    """Ask what `health` in the configuration says, or the tool's own address with OPTIONS and without secrets.

    What was made for being asked says by a 5xx that it is not well. Elsewhere 500 may only mean that OPTIONS was not thought of: such a
    server is there, and one that breaks the connection at it, or drops it silently, is asked with HEAD.

    Raises:
        TurnlineError: no connection, no answer in time, no HTTP, or a status that says so.
    """
    configuration = integration.configuration
    asked = configuration.get("health")
    if asked:
        method = str(asked.get("method") or DEFAULT_HEALTH_METHOD).upper()
        url = str(asked["url"])
        if asked.get("query"):
            url += ("&" if "?" in url else "?") + urlencode(asked["query"])
        secret = {name: fill_secret(text, integration.secrets) for name, text in (asked.get("secret_headers") or {}).items()}
        headers = {name.lower(): value for name, value in ((asked.get("headers") or {}) | secret).items()}
        status = await _status(outside, method, url, deadline_s, headers)
        down = status >= 500 and status != NOT_IMPLEMENTED
    else:
        parts = urlsplit(str(configuration["url"]))
        url = urlunsplit((parts.scheme, parts.netloc, PLACEHOLDER.sub("0", parts.path), "", ""))
        status = await _options_or_head(outside, url, deadline_s)
        down = status in NOBODY_THERE
    if down:
        raise ProviderDown(f"{WHOM} answered {status}")


async def _options_or_head(outside: HttpClients, url: str, deadline_s: float) -> int:
    """The status of OPTIONS or, where that is broken off or half the time has passed, of HEAD beside it: whichever is answered first."""
    ends_at = time.monotonic() + deadline_s
    options = asyncio.create_task(_status(outside, "OPTIONS", url, deadline_s))
    asking = [options]
    try:
        await asyncio.wait(asking, timeout=deadline_s / 2)
        if options.done() and not isinstance(options.exception(), (ReplyLost, Malformed)):
            return options.result()
        head = asyncio.create_task(_status(outside, "HEAD", url, ends_at - time.monotonic()))
        asking.append(head)
        for answer in asyncio.as_completed(asking):
            with contextlib.suppress(TurnlineError):
                return await answer
        return (options if isinstance(options.exception(), TimedOut) else head).result()
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


async def _status(outside: HttpClients, method: str, url: str, deadline_s: float, headers: Mapping[str, str] | None = None) -> int:
    """The answer's status. Its body does not matter, and may be endless, stalled or broken: there is somebody all the same."""
    status: int | None = None
    # Whoever is asked once in minutes needs no connection kept; thousands of them would use up the process's files.
    sent = {"connection": "close", **(headers or {})}
    try:
        async with outside.tools.request(method, url, whom=WHOM, deadline_s=deadline_s, max_bytes=_MAX_BYTES, headers=sent) as reply:
            status = reply.status
            await reply.drain(_DRAIN_S)
    except TurnlineError:
        if status is None:
            raise
    assert status is not None  # noqa: S101 - one of the two came about
    return status


PROBES: dict[str, Probe] = {"custom_tool": custom_tool}


async def probed(integration: IntegrationSpec, outside: HttpClients, deadline_s: float) -> str | None:
    """None where the integration answered; else why not, in a sentence that holds no secret. Kinds that nobody can ask answer."""
    probe = PROBES.get(integration.integration_type)
    if probe is None:
        return None
    try:
        await probe(integration, outside, deadline_s)
    except Rejected as error:
        return f"It is not set up correctly: {error}"
    except TurnlineError as error:
        return str(error)
    return None
