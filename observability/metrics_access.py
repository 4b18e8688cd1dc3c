"""Access to the metrics endpoints of the API and the workers."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping

FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")  # set by proxies, so the client is not on this machine


def refusal(peer: str, headers: Mapping[str, str], token: str) -> tuple[int, str] | None:
    """Return why a client may not read metrics, as an HTTP status and a message; None if it may.

    `headers` have lower-case names. With a `token`, a client has to send it. Without one, only clients on this machine may read
    metrics, and no proxy on behalf of others.
    """
    if token:
        given = headers.get("authorization", "")
        if hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            return None
        return 401, "Metrics need TURNLINE_METRICS_TOKEN as a bearer token."
    if _is_loopback(peer) and not any(name in headers for name in FORWARDED):
        return None
    return 403, "Without TURNLINE_METRICS_TOKEN, only this machine may read metrics."


def _is_loopback(peer: str) -> bool:
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
