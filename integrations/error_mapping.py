"""Map HTTP statuses and transport exceptions to the errors of `engine.errors`; parse `Retry-After`."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

import aiohttp
import httpx

from engine.errors import Malformed, ProviderDown, RateLimited, Rejected, ReplyLost, TimedOut, TurnlineError, Unreachable
from integrations.ssrf_guard import AddressRefused

LONGEST_RETRY_AFTER_S = 7 * 24 * 3600.0
_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{0,6})?")
_TRY_AGAIN_STATUSES = frozenset({408, 425})
# After these the server may have executed a POST and only point at its result.
_REDIRECTS_AFTER_EFFECT = frozenset({301, 302, 303})


def retry_after_s(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """Return how many seconds the server asks us to wait, or None if there is no header that we understand.

    Reads `retry-after-ms` (milliseconds) first, then `Retry-After` in seconds or as an HTTP date (relative to `now`, in seconds since
    the epoch). Never negative, at most a week; the caller decides how long to really wait.
    """
    wait_ms = _number(headers.get("retry-after-ms"))
    if wait_ms is not None:
        return min(wait_ms / 1000, LONGEST_RETRY_AFTER_S)
    text = headers.get("retry-after")
    wait_s = _number(text)
    if wait_s is None and text:
        try:
            wait_s = max(_seconds_since_epoch(text) - (time.time() if now is None else now), 0.0)
        except (ValueError, OverflowError, IndexError, TypeError):
            return None
    return None if wait_s is None else min(wait_s, LONGEST_RETRY_AFTER_S)


def _number(text: str | None) -> float | None:
    return float(text) if text is not None and _NUMBER.fullmatch(text.strip()) else None


def _seconds_since_epoch(http_date: str) -> float:
    moment = parsedate_to_datetime(http_date)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def of_status(
    status: int, headers: Mapping[str, str], peer: str, detail: str = "", *, server_errors_maybe_done: bool = False
) -> TurnlineError:
    """Return the error for a response with this `status`, which is not 2xx.

    `peer` names the server; `detail` is a short, redacted text from the body. `server_errors_maybe_done`: the request may have been
    executed despite a 5xx, a 408 or a redirect. True for tools, false for model providers, which do not bill a failed answer.
    """
    message = f"{peer} answered {status}" + (f": {detail}" if detail else "")
    if status == 429:
        return RateLimited(message, retry_after_s=retry_after_s(headers))
    if status >= 500 or status in _TRY_AGAIN_STATUSES:
        # 408 should mean that the request did not arrive completely, but some servers send it when their own work took too long.
        maybe_done = server_errors_maybe_done and status != 425
        return ProviderDown(message, retry_after_s=retry_after_s(headers), maybe_done=maybe_done)
    if 300 <= status < 400:
        maybe_done = server_errors_maybe_done and status in _REDIRECTS_AFTER_EFFECT
        return Rejected(f"{peer} answered with a redirect ({status}), which is not followed", maybe_done=maybe_done)
    if 400 <= status < 500:
        return Rejected(message)
    return Malformed(f"{peer} answered with status {status}, which is not a final status")


def of_exception(error: Exception, peer: str, *, sent: bool) -> TurnlineError:
    """Return the error for an exception of httpx or aiohttp, or for an invalid host name. `sent`: sending the request had begun."""
    # httpx-aiohttp maps a lost connection to ConnectTimeout; the real error is the cause.
    cause = error.__cause__ if isinstance(error, httpx.HTTPError) and isinstance(error.__cause__, Exception) else error
    if refused := _refusal(cause):
        return Rejected(f"{peer} was not contacted: {refused}")
    if isinstance(cause, (httpx.InvalidURL, httpx.UnsupportedProtocol, aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError)):
        return Rejected(f"{peer} was not contacted: its address is not a valid http or https address")
    if isinstance(cause, UnicodeError):
        if not sent:
            return Rejected(f"{peer} was not contacted: its address is not a valid address")
        return Malformed(f"{peer} answered with something that is not HTTP")
    if not sent:
        if isinstance(cause, (aiohttp.ServerTimeoutError, TimeoutError)):
            return TimedOut(f"{peer} did not accept the connection in time", maybe_done=False)
        if isinstance(cause, aiohttp.ClientConnectorDNSError):
            return Unreachable(f"{peer} could not be reached: its name could not be resolved")
        if isinstance(cause, aiohttp.ClientSSLError):
            return ProviderDown(f"{peer} could not be reached: its TLS certificate or handshake failed")
        return Unreachable(f"{peer} could not be reached: no connection")
    if isinstance(cause, aiohttp.ClientResponseError):  # for example a header that is too long, or a line that is not HTTP
        return Malformed(f"{peer} answered with something that is not HTTP")
    return ReplyLost(f"{peer} closed the connection before its answer was complete")


def _refusal(cause: BaseException | None) -> AddressRefused | None:
    if isinstance(cause, aiohttp.ClientConnectorError):
        cause = cause.os_error
    return cause if isinstance(cause, AddressRefused) else None
