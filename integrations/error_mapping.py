"""What went wrong on the wire, as the error tree of `engine.errors`; the one place that reads `Retry-After`."""

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
# After these the server may have done what a POST asked for, and only points at the result.
_REDIRECTS_AFTER_EFFECT = frozenset({301, 302, 303})


def retry_after_s(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """Return how many seconds the other side asks us to wait, or None where it says nothing we understand.

    Reads `retry-after-ms` (milliseconds) first, then `Retry-After` in seconds or as an HTTP date (measured against `now`, seconds since
    the epoch). Never negative, at most a week; the caller decides how much of it to honour.
    """
    asked = _number(headers.get("retry-after-ms"))
    if asked is not None:
        return min(asked / 1000, LONGEST_RETRY_AFTER_S)
    text = headers.get("retry-after")
    asked = _number(text)
    if asked is None and text:
        try:
            asked = max(_seconds_since_epoch(text) - (time.time() if now is None else now), 0.0)
        except (ValueError, OverflowError, IndexError, TypeError):
            return None
    return None if asked is None else min(asked, LONGEST_RETRY_AFTER_S)


def _number(text: str | None) -> float | None:
    return float(text) if text is not None and _NUMBER.fullmatch(text.strip()) else None


def _seconds_since_epoch(http_date: str) -> float:
    moment = parsedate_to_datetime(http_date)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def of_status(
    status: int, headers: Mapping[str, str], whom: str, detail: str = "", *, server_errors_maybe_done: bool = False
) -> TurnlineError:
    """Return the error that an answer with this `status` (not 2xx) is.

    `detail` is a short, redacted text from the body. `server_errors_maybe_done`: a 5xx, a 408, or a redirect after a POST, does not prove
    that nothing happened; true for tools, false for model providers, which do not bill an answer they failed to give.
    """
    said = f"{whom} answered {status}" + (f": {detail}" if detail else "")
    if status == 429:
        return RateLimited(said, retry_after_s=retry_after_s(headers))
    if status >= 500 or status in _TRY_AGAIN_STATUSES:
        # 408 should mean that the request never came whole; there are servers that say it when their own work took too long.
        maybe_done = server_errors_maybe_done and status != 425
        return ProviderDown(said, retry_after_s=retry_after_s(headers), maybe_done=maybe_done)
    if 300 <= status < 400:
        maybe_done = server_errors_maybe_done and status in _REDIRECTS_AFTER_EFFECT
        return Rejected(f"{whom} answered with a redirect ({status}), which is not followed", maybe_done=maybe_done)
    if 400 <= status < 500:
        return Rejected(said)
    return Malformed(f"{whom} answered with status {status}, which is not an answer")


def of_exception(error: Exception, whom: str, *, sent: bool) -> TurnlineError:
    """Return the error that an exception of httpx or aiohttp is, or one about a host's name. `sent`: the request had begun to leave."""
    # httpx-aiohttp maps a lost connection to ConnectTimeout; what really happened is the cause.
    cause = error.__cause__ if isinstance(error, httpx.HTTPError) and isinstance(error.__cause__, Exception) else error
    if refused := _refusal(cause):
        return Rejected(f"{whom} was not asked: {refused}")
    if isinstance(cause, (httpx.InvalidURL, httpx.UnsupportedProtocol, aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError)):
        return Rejected(f"{whom} was not asked: its address is not a valid http or https address")
    if isinstance(cause, UnicodeError):
        if not sent:
            return Rejected(f"{whom} was not asked: its address is not a valid address")
        return Malformed(f"{whom} answered with something that is not HTTP")
    if not sent:
        if isinstance(cause, (aiohttp.ServerTimeoutError, TimeoutError)):
            return TimedOut(f"{whom} did not accept the connection in time", maybe_done=False)
        if isinstance(cause, aiohttp.ClientConnectorDNSError):
            return Unreachable(f"{whom} could not be reached: its name could not be resolved")
        if isinstance(cause, aiohttp.ClientSSLError):
            return ProviderDown(f"{whom} could not be reached: its TLS certificate or handshake failed")
        return Unreachable(f"{whom} could not be reached: no connection")
    if isinstance(cause, aiohttp.ClientResponseError):  # a header too long, a line that is not HTTP
        return Malformed(f"{whom} answered with something that is not HTTP")
    return ReplyLost(f"{whom} closed the connection before its answer was whole")


def _refusal(cause: BaseException | None) -> AddressRefused | None:
    if isinstance(cause, aiohttp.ClientConnectorError):
        cause = cause.os_error
    return cause if isinstance(cause, AddressRefused) else None
