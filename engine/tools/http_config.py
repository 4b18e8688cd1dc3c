"""The configuration of a `custom_tool` integration: an HTTP call. It is checked when it is saved.

    {"url": "https://shop.example/orders/{order}", "method": "GET", "headers": {"Accept-Language": "en"}, "query": {"full": true},
     "timeout_s": 10, "secret_headers": {"Authorization": "Bearer {{shop_key}}", "X-Api-Key": "shop_key"}}

`{name}` in the path is filled from the mapped arguments. `secret_headers` hold the name of a secret, or a template with `{{name}}`.

`status` describes the request that asks the tool's server if a call happened. A queryable tool needs it:

    {"status": {"url": "https://shop.example/refunds/by-key/{idempotency_key}", "method": "GET", "headers": {}, "query": {"full": true},
     "secret_headers": {"Authorization": "Bearer {{shop_key}}"}, "done": "state == 'paid'", "result": "refund"}}

`{name}` in its path and in the strings of its `query` is replaced by a mapped argument, `{idempotency_key}` by the call's key. 404 means
that the call did not happen. 200 means that it did, unless `done` is given: a JMESPath expression on the answer, where null means
"unknown" and false, 0 or empty means "no". `result` maps the answer to the tool's result; the default is the mapping of the call.

`health` describes the request that probes the tool's server. The default is OPTIONS at the tool's URL, without secrets:

    {"health": {"url": "https://shop.example/health", "method": "GET", "headers": {}, "query": {},
     "secret_headers": {"Authorization": "Bearer {{shop_key}}"}}}

Any status below 500 counts as an answer, also 404 and 401, and so does 501 (method not implemented). For OPTIONS at the tool's URL, 500
counts as an answer too.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import SplitResult, urlsplit

import idna

from engine.errors import Rejected
from engine.safe_json import check_json_value
from engine.tools.mapping import check_mapping

METHODS = ("POST", "GET", "PUT", "PATCH", "DELETE")
DEFAULT_METHOD = METHODS[0]
STATUS_METHODS = ("GET", "POST")
DEFAULT_STATUS_METHOD = STATUS_METHODS[0]
HEALTH_METHODS = ("GET", "HEAD", "OPTIONS")  # safe methods only
DEFAULT_HEALTH_METHOD = HEALTH_METHODS[0]
KEY_PLACEHOLDER = "idempotency_key"
MAX_TIMEOUT_S = 300.0
MAX_URL = 2_000
MAX_ENTRIES = 50
MAX_HOST, MAX_LABEL = 254, 63  # DNS limits of a name, with its final dot, and of its labels

PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SECRET = re.compile(r"\{\{\s*([A-Za-z0-9_.-]+)\s*\}\}")
_KNOWN = ("url", "method", "headers", "query", "timeout_s", "secret_headers", "status", "health")
_KNOWN_OF_STATUS = ("url", "method", "headers", "query", "secret_headers", "done", "result")
_KNOWN_OF_HEALTH = ("url", "method", "headers", "query", "secret_headers")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]{0,4000}")
# Headers that the client sets itself, or that change the framing of a request.
_OWN_HEADERS = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "keep-alive", "upgrade", "te", "trailer", "expect"}
    | {"accept-encoding", "idempotency-key", "proxy-authorization", "proxy-connection"}
)


def check_configuration(configuration: object, secret_names: Collection[str] | None = None) -> None:
    """Return if `configuration` is valid for a `custom_tool`. With `secret_names`, every secret that it names must be among them.

    The address guard is applied when a connection is made, not here.

    Raises:
        Rejected: it is not valid; the message says what is wrong and where.
    """
    if not isinstance(configuration, Mapping):
        raise Rejected("The configuration must be an object.")
    check_json_value(dict(configuration), "The configuration")
    _check_request(configuration, _KNOWN, METHODS)
    _check_timeout(configuration.get("timeout_s"))
    _check_status(configuration.get("status"))
    _check_health(configuration.get("health"))
    if secret_names is not None:
        missing = sorted(secrets_used(configuration) - set(secret_names))
        if missing:
            raise Rejected(f"secret_headers refer to the secret {missing[0][:60]!r}, which is not given.")


def check_effect(effect: str, configuration: Mapping[str, Any]) -> None:
    """Return if a valid `configuration` has all that a tool of this `effect` needs.

    Raises:
        Rejected: the tool is queryable, and the configuration has no `status`.
    """
    if effect == "queryable" and not configuration.get("status"):
        raise Rejected("A queryable tool's integration needs `status` in its configuration: the request that asks if a call happened.")


def secrets_used(configuration: Mapping[str, Any]) -> set[str]:
    """Return the names of the secrets in the `secret_headers` of the configuration and of its `status` and `health`."""
    names: set[str] = set()
    for request in (configuration, configuration.get("status") or {}, configuration.get("health") or {}):
        for value in (request.get("secret_headers") or {}).values():
            names.update(_SECRET.findall(value) if "{{" in value else [value])
    return names


def fill_secret(template: str, secrets: Mapping[str, str]) -> str:
    """Return the header value for `template`, which is the name of a secret or text with `{{name}}`.

    Raises:
        Rejected: a secret is missing or is not a valid header value. The message has its name, never its value.
    """

    def value(name: str) -> str:
        found = secrets.get(name)
        if found is None:
            raise Rejected(f"The tool's secret {name[:60]!r} is not given.")
        found = found.strip()
        if not is_header_value(found):
            raise Rejected(f"The tool's secret {name[:60]!r} has characters that are not allowed in a header.")
        return found

    return _SECRET.sub(lambda match: value(match.group(1)), template) if "{{" in template else value(template)


def is_header_value(text: str) -> bool:
    """Return True if `text` is a valid header value: printable ASCII without line breaks."""
    return _HEADER_VALUE.fullmatch(text) is not None


def _check_request(request: Mapping[str, Any], known: tuple[str, ...], methods: tuple[str, ...], within: str = "") -> None:
    if unknown := [key for key in request if key not in known]:
        whose = within.rstrip(".") or "The configuration"
        raise Rejected(f"{whose} has an unknown field {unknown[0][:60]!r}; there are: {', '.join(known)}.")
    _check_url(request.get("url"), f"{within}url")
    method = request.get("method", methods[0])
    if not isinstance(method, str) or method.upper() not in methods:
        raise Rejected(f"{within}method must be one of {', '.join(methods)}.")
    _check_headers(request.get("headers"), f"{within}headers")
    _check_headers(request.get("secret_headers"), f"{within}secret_headers")
    _check_query(request.get("query"), f"{within}query")


def _check_status(status: object) -> None:
    if status is None:
        return
    if not isinstance(status, Mapping):
        raise Rejected("status must be an object: the request that asks if a call happened.")
    _check_request(status, _KNOWN_OF_STATUS, STATUS_METHODS, "status.")
    for name, value in (status.get("query") or {}).items():
        if isinstance(value, str) and any(bracket in PLACEHOLDER.sub("", value) for bracket in "{}"):
            raise Rejected(f"status.query has, for {name[:60]!r}, a {{ or }} that is not part of a placeholder like {{name}}.")
    if not isinstance(status.get("done", ""), (str, type(None))):
        raise Rejected("status.done must be a JMESPath expression, as a string.")
    check_mapping(status.get("done"), "status.done")
    check_mapping(status.get("result"), "status.result")


def _check_health(health: object) -> None:
    if health is None:
        return
    if not isinstance(health, Mapping):
        raise Rejected("health must be an object: the request that probes the tool's server.")
    _check_request(health, _KNOWN_OF_HEALTH, HEALTH_METHODS, "health.")
    if PLACEHOLDER.search(urlsplit(str(health["url"])).path):
        raise Rejected("health.url must not have placeholders: there are no arguments to fill them from.")


def _check_url(url: object, where: str) -> None:
    if not isinstance(url, str) or not url:
        raise Rejected(f"{where} is required: the URL to send the request to.")
    if len(url) > MAX_URL:
        raise Rejected(f"{where} is longer than {MAX_URL} characters.")
    if any(ord(character) <= 0x20 or ord(character) == 0x7F for character in url) or "\\" in url:
        raise Rejected(f"{where} must not contain spaces, control characters or backslashes.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Rejected(f"{where} is not a valid URL: {error}.") from None
    if parts.scheme not in ("http", "https"):
        raise Rejected(f"{where} must begin with https:// or http://.")
    if not parts.hostname or port == 0:
        raise Rejected(f"{where} has no host.")
    _check_host(parts.hostname, where)
    if "@" in parts.netloc:
        raise Rejected(f"{where} must not contain a user name or password; use secret_headers.")
    if parts.fragment:
        raise Rejected(f"{where} must not have a fragment (#…).")
    _check_placeholders(parts, where)


def _check_host(host: str, where: str) -> None:
    """Refuse a host that is not a valid DNS name: an empty or too long label, or invalid Punycode."""
    if ":" in host:
        return  # an IPv6 address, which urlsplit has checked
    try:
        name = idna.encode(host).decode("ascii") if not host.isascii() else host
        if name.startswith("xn--"):
            idna.decode(name)
    except UnicodeError:
        raise Rejected(f"{where} has a host that is not a valid name.") from None
    labels = name.removesuffix(".").split(".")
    if len(name) > MAX_HOST or not all(0 < len(label) <= MAX_LABEL for label in labels):
        raise Rejected(f"{where} has a host that is not a valid name: each part between dots has 1 to {MAX_LABEL} characters.")


def _check_placeholders(parts: SplitResult, where: str) -> None:
    if any(bracket in parts.netloc + parts.query for bracket in "{}"):
        instead = "write them in status.query" if where == "status.url" else "the rest of the arguments is sent as query or body"
        raise Rejected(f"{where} may have {{placeholders}} in its path only; {instead}.")
    if any(bracket in PLACEHOLDER.sub("", parts.path) for bracket in "{}"):
        raise Rejected(f"{where} has a {{ or }} that is not part of a placeholder like {{name}}.")
    if any(segment in (".", "..") for segment in parts.path.split("/")):
        raise Rejected(f"{where} must not have . or .. as a segment of its path.")


def _check_headers(headers: object, where: str) -> None:
    for name, value in _entries(headers, where):
        if not _HEADER_NAME.fullmatch(name):
            raise Rejected(f"{where} has {name[:60]!r}, which is not a valid header name.")
        if name.lower() in _OWN_HEADERS:
            raise Rejected(f"{where} must not set {name}.")
        if not isinstance(value, str) or not value or not is_header_value(value):
            raise Rejected(f"{where} must give {name} a string of printable ASCII characters.")
        if where.endswith("secret_headers") and any(bracket in _SECRET.sub("", value) for bracket in ("{{", "}}")):
            raise Rejected(f"{where} has a template for {name} that is not closed; write {{{{name}}}}.")


def _check_query(query: object, where: str) -> None:
    for name, value in _entries(query, where):
        if not isinstance(value, (str, int, float, bool)):
            raise Rejected(f"{where} must give {name[:60]!r} a string, a number or a boolean.")


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
