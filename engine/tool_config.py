"""What a `custom_tool` integration may be configured with: an HTTP call, checked when it is saved and read when it is made.

    {"url": "https://shop.example/orders/{order}", "method": "GET", "headers": {"Accept-Language": "en"}, "query": {"full": true},
     "timeout_s": 10, "secret_headers": {"Authorization": "Bearer {{shop_key}}", "X-Api-Key": "shop_key"}}

`{name}` in the path is filled from the mapped arguments. `secret_headers` hold the name of a secret, or a template with `{{name}}`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import SplitResult, urlsplit

from engine.errors import Rejected
from engine.sanitise import check_json_value

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
DEFAULT_METHOD = "POST"
MAX_TIMEOUT_S = 300.0
MAX_URL = 2_000
MAX_ENTRIES = 50

PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SECRET = re.compile(r"\{\{\s*([A-Za-z0-9_.-]+)\s*\}\}")
_KNOWN = ("url", "method", "headers", "query", "timeout_s", "secret_headers")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]{0,4000}")
# These are ours to set, or change what a request is.
_OWN_HEADERS = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "keep-alive", "upgrade", "te", "trailer", "expect"}
    | {"accept-encoding", "idempotency-key", "proxy-authorization", "proxy-connection"}
)


def check_configuration(configuration: object, secret_names: Collection[str] | None = None) -> None:
    """Return if `configuration` is one of a `custom_tool`. With `secret_names`, every secret it refers to must be among them.

    Whether the address may be reached is decided when it is connected to, and not here.

    Raises:
        Rejected: it is not; the sentence says what and where.
    """
    if not isinstance(configuration, Mapping):
        raise Rejected("The configuration must be an object.")
    check_json_value(dict(configuration), "The configuration")
    if unknown := [key for key in configuration if key not in _KNOWN]:
        raise Rejected(f"The configuration has an unknown field {unknown[0][:60]!r}; there are: {', '.join(_KNOWN)}.")
    _check_url(configuration.get("url"))
    method = configuration.get("method", DEFAULT_METHOD)
    if not isinstance(method, str) or method.upper() not in METHODS:
        raise Rejected(f"method must be one of {', '.join(METHODS)}.")
    _check_headers(configuration.get("headers"), "headers")
    _check_headers(configuration.get("secret_headers"), "secret_headers")
    _check_query(configuration.get("query"))
    _check_timeout(configuration.get("timeout_s"))
    if secret_names is not None:
        missing = sorted(secrets_used(configuration) - set(secret_names))
        if missing:
            raise Rejected(f"secret_headers refer to the secret {missing[0][:60]!r}, which is not given.")


def secrets_used(configuration: Mapping[str, Any]) -> set[str]:
    """Return the names of the secrets that the configuration's `secret_headers` refer to."""
    names: set[str] = set()
    for value in (configuration.get("secret_headers") or {}).values():
        names.update(_SECRET.findall(value) if "{{" in value else [value])
    return names


def fill_secret(template: str, secrets: Mapping[str, str]) -> str:
    """Return the header value that `template` (the name of a secret, or text with `{{name}}`) stands for.

    Raises:
        Rejected: a secret is missing, or holds what no header can (its name is said, never its value).
    """

    def value(name: str) -> str:
        found = secrets.get(name)
        if found is None:
            raise Rejected(f"The tool's secret {name[:60]!r} is not given.")
        found = found.strip()
        if not is_header_value(found):
            raise Rejected(f"The tool's secret {name[:60]!r} holds characters that no header can carry.")
        return found

    return _SECRET.sub(lambda match: value(match.group(1)), template) if "{{" in template else value(template)


def is_header_value(text: str) -> bool:
    """Whether `text` can stand in a header: printable ASCII, no line breaks."""
    return _HEADER_VALUE.fullmatch(text) is not None


def _check_url(url: object) -> None:
    if not isinstance(url, str) or not url:
        raise Rejected("url is required: the address that the tool's calls are sent to.")
    if len(url) > MAX_URL:
        raise Rejected(f"url is longer than {MAX_URL} characters.")
    if any(ord(character) <= 0x20 or ord(character) == 0x7F for character in url) or "\\" in url:
        raise Rejected("url must not contain spaces, control characters or backslashes.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Rejected(f"url is not an address: {error}.") from None
    if parts.scheme not in ("http", "https"):
        raise Rejected("url must begin with https:// or http://.")
    if not parts.hostname or port == 0:
        raise Rejected("url has no host.")
    if "@" in parts.netloc:
        raise Rejected("url must not carry a user name or password; use secret_headers.")
    if parts.fragment:
        raise Rejected("url must not have a fragment (#…).")
    _check_placeholders(parts)


def _check_placeholders(parts: SplitResult) -> None:
    if any(bracket in parts.netloc + parts.query for bracket in "{}"):
        raise Rejected("url may have {placeholders} in its path only; the rest of the arguments is sent as query or body.")
    if any(bracket in PLACEHOLDER.sub("", parts.path) for bracket in "{}"):
        raise Rejected("url has a { or } that is not part of a placeholder like {name}.")
    if any(segment in (".", "..") for segment in parts.path.split("/")):
        raise Rejected("url must not have . or .. as a part of its path.")


def _check_headers(headers: object, where: str) -> None:
    for name, value in _entries(headers, where):
        if not _HEADER_NAME.fullmatch(name):
            raise Rejected(f"{where} has {name[:60]!r}, which is not a header's name.")
        if name.lower() in _OWN_HEADERS:
            raise Rejected(f"{where} must not set {name}.")
        if not isinstance(value, str) or not value or not is_header_value(value):
            raise Rejected(f"{where} must give {name} a text of printable ASCII characters.")
        if where == "secret_headers" and any(bracket in _SECRET.sub("", value) for bracket in ("{{", "}}")):
            raise Rejected(f"{where} has a template for {name} that is not closed; write {{{{name}}}}.")


def _check_query(query: object) -> None:
    for name, value in _entries(query, "query"):
        if not isinstance(value, (str, int, float, bool)):
            raise Rejected(f"query must give {name[:60]!r} a text, a number or a truth value.")


def _check_timeout(timeout_s: object) -> None:
    if timeout_s is None:
        return
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, (int, float)) or not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise Rejected(f"timeout_s must be a number of seconds above 0 and at most {MAX_TIMEOUT_S:g}.")


def _entries(value: object, where: str) -> list[tuple[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, Mapping) or not all(isinstance(name, str) and name for name in value):
        raise Rejected(f"{where} must be an object of names and values.")
    if len(value) > MAX_ENTRIES:
        raise Rejected(f"{where} has more than {MAX_ENTRIES} entries.")
    return list(value.items())
