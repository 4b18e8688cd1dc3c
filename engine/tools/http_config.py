"""What a `custom_tool` integration may be configured with: an HTTP call, checked when it is saved and read when it is made.

    {"url": "https://shop.example/orders/{order}", "method": "GET", "headers": {"Accept-Language": "en"}, "query": {"full": true},
     "timeout_s": 10, "secret_headers": {"Authorization": "Bearer {{shop_key}}", "X-Api-Key": "shop_key"}}

`{name}` in the path is filled from the mapped arguments. `secret_headers` hold the name of a secret, or a template with `{{name}}`.

`status` is how the tool's server is asked whether a call happened, which a queryable tool needs:

    {"status": {"url": "https://shop.example/refunds/by-key/{idempotency_key}", "method": "GET", "headers": {}, "query": {"full": true},
     "secret_headers": {"Authorization": "Bearer {{shop_key}}"}, "done": "state == 'paid'", "result": "refund"}}

`{name}` in its path and in the texts of its `query` stands for a mapped argument, `{idempotency_key}` for the call's key. 404 means that
the call did not happen; 200 that it did, or, with `done`, what that JMESPath expression makes of the answer: null says nothing, anything
else that is false, 0 or empty says no. `result` makes the tool's result of the answer; without it the call's own mapping does.

`health` is what is asked now and then whether the tool's server is there; without it, the tool's address with OPTIONS and no secret:

    {"health": {"url": "https://shop.example/health", "method": "GET", "headers": {}, "query": {},
     "secret_headers": {"Authorization": "Bearer {{shop_key}}"}}}

Any answer below 500 is one, 404 and 401 included; so is 501, which says that the method is not known there. To OPTIONS at the tool's
address, 500 is one, too.
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
HEALTH_METHODS = ("GET", "HEAD", "OPTIONS")  # none that does anything
DEFAULT_HEALTH_METHOD = HEALTH_METHODS[0]
KEY_PLACEHOLDER = "idempotency_key"
MAX_TIMEOUT_S = 300.0
MAX_URL = 2_000
MAX_ENTRIES = 50
MAX_HOST, MAX_LABEL = 254, 63  # of a name and of its parts, as DNS has it; the dot at the end included

PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SECRET = re.compile(r"\{\{\s*([A-Za-z0-9_.-]+)\s*\}\}")
_KNOWN = ("url", "method", "headers", "query", "timeout_s", "secret_headers", "status", "health")
_KNOWN_OF_STATUS = ("url", "method", "headers", "query", "secret_headers", "done", "result")
_KNOWN_OF_HEALTH = ("url", "method", "headers", "query", "secret_headers")
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
    _check_request(configuration, _KNOWN, METHODS)
    _check_timeout(configuration.get("timeout_s"))
    _check_status(configuration.get("status"))
    _check_health(configuration.get("health"))
    if secret_names is not None:
        missing = sorted(secrets_used(configuration) - set(secret_names))
        if missing:
            raise Rejected(f"secret_headers refer to the secret {missing[0][:60]!r}, which is not given.")


def check_effect(effect: str, configuration: Mapping[str, Any]) -> None:
    """Return if an integration with this (valid) `configuration` has what a tool of this `effect` needs.

    Raises:
        Rejected: the tool is queryable, and the configuration does not say how to ask.
    """
    if effect == "queryable" and not configuration.get("status"):
        raise Rejected("A queryable tool's integration needs status in its configuration: how to ask whether a call happened.")


def secrets_used(configuration: Mapping[str, Any]) -> set[str]:
    """Return the names of the secrets that the configuration's `secret_headers` refer to, those of its `status` and `health` included."""
    names: set[str] = set()
    for request in (configuration, configuration.get("status") or {}, configuration.get("health") or {}):
        for value in (request.get("secret_headers") or {}).values():
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
        raise Rejected("status must be an object: how to ask whether a call happened.")
    _check_request(status, _KNOWN_OF_STATUS, STATUS_METHODS, "status.")
    for name, value in (status.get("query") or {}).items():
        if isinstance(value, str) and any(bracket in PLACEHOLDER.sub("", value) for bracket in "{}"):
            raise Rejected(f"status.query has for {name[:60]!r} a {{ or }} that is not part of a placeholder like {{name}}.")
    if not isinstance(status.get("done", ""), (str, type(None))):
        raise Rejected("status.done must be a JMESPath expression, as text.")
    check_mapping(status.get("done"), "status.done")
    check_mapping(status.get("result"), "status.result")


def _check_health(health: object) -> None:
    if health is None:
        return
    if not isinstance(health, Mapping):
        raise Rejected("health must be an object: what is asked whether the tool's server is there.")
    _check_request(health, _KNOWN_OF_HEALTH, HEALTH_METHODS, "health.")
    if PLACEHOLDER.search(urlsplit(str(health["url"])).path):
        raise Rejected("health.url must not have placeholders: there are no arguments to fill them from.")


def _check_url(url: object, where: str) -> None:
    if not isinstance(url, str) or not url:
        raise Rejected(f"{where} is required: the address that is asked.")
    if len(url) > MAX_URL:
        raise Rejected(f"{where} is longer than {MAX_URL} characters.")
    if any(ord(character) <= 0x20 or ord(character) == 0x7F for character in url) or "\\" in url:
        raise Rejected(f"{where} must not contain spaces, control characters or backslashes.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Rejected(f"{where} is not an address: {error}.") from None
    if parts.scheme not in ("http", "https"):
        raise Rejected(f"{where} must begin with https:// or http://.")
    if not parts.hostname or port == 0:
        raise Rejected(f"{where} has no host.")
    _check_host(parts.hostname, where)
    if "@" in parts.netloc:
        raise Rejected(f"{where} must not carry a user name or password; use secret_headers.")
    if parts.fragment:
        raise Rejected(f"{where} must not have a fragment (#…).")
    _check_placeholders(parts, where)


def _check_host(host: str, where: str) -> None:
    """Refuse what no name server can be asked for: an empty or too long part of a name, a part that says it is Punycode and is not."""
    if ":" in host:
        return  # an IPv6 address; urlsplit has looked at it
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
        raise Rejected(f"{where} must not have . or .. as a part of its path.")


def _check_headers(headers: object, where: str) -> None:
    for name, value in _entries(headers, where):
        if not _HEADER_NAME.fullmatch(name):
            raise Rejected(f"{where} has {name[:60]!r}, which is not a header's name.")
        if name.lower() in _OWN_HEADERS:
            raise Rejected(f"{where} must not set {name}.")
        if not isinstance(value, str) or not value or not is_header_value(value):
            raise Rejected(f"{where} must give {name} a text of printable ASCII characters.")
        if where.endswith("secret_headers") and any(bracket in _SECRET.sub("", value) for bracket in ("{{", "}}")):
            raise Rejected(f"{where} has a template for {name} that is not closed; write {{{{name}}}}.")


def _check_query(query: object, where: str) -> None:
    for name, value in _entries(query, where):
        if not isinstance(value, (str, int, float, bool)):
            raise Rejected(f"{where} must give {name[:60]!r} a text, a number or a truth value.")


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
