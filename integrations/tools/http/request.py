"""What a `custom_tool` sends: its configuration and the mapped arguments, as one HTTP request."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

from engine.enums import Effect
from engine.errors import Rejected
from engine.tools.http_config import (
    DEFAULT_METHOD,
    DEFAULT_STATUS_METHOD,
    KEY_PLACEHOLDER,
    PLACEHOLDER,
    check_configuration,
    check_effect,
    fill_secret,
)
from engine.tools.json_schema import apply_mapping, validate
from engine.turn.context import IntegrationSpec, ToolSpec

_IN_QUERY = frozenset({"GET", "DELETE"})
_MAX_ADDRESS = 16_000


class Refused(Rejected):
    """The call is not made as it stands, by our own checks or by the other side's answer; a sentence that the model can act on."""


@dataclass(frozen=True, slots=True)
class ToolRequest:
    """What is sent: the mapped arguments have found their places."""

    method: str
    url: str
    headers: dict[str, str]
    content: bytes | None = None


def call_request(tool: ToolSpec, integration: IntegrationSpec, arguments: dict[str, Any], idempotency_key: str) -> ToolRequest:
    """The request of a call itself; what the path does not name of the mapped arguments is sent as query or body.

    Raises:
        Refused: the arguments are not what the tool asks for, or the tool is not set up correctly.
    """
    mapped = _mapped(tool, integration, arguments)
    configuration = integration.configuration
    url, used = _filled_path(str(configuration["url"]), mapped)
    rest = {name: argument for name, argument in mapped.items() if name not in used}
    method = str(configuration.get("method") or DEFAULT_METHOD).upper()
    query = [(name, _query_text(value)) for name, value in (configuration.get("query") or {}).items()]
    headers = _headers(configuration, integration, idempotency_key)
    if method in _IN_QUERY:
        return ToolRequest(method, _with_query(url, [*query, *_query_pairs(rest)]), headers)
    return _with_body(method, _with_query(url, query), headers, rest)


def status_request(tool: ToolSpec, integration: IntegrationSpec, arguments: dict[str, Any], idempotency_key: str) -> ToolRequest:
    """The request that asks whether the call under `idempotency_key` happened; only what `status` names is sent.

    Raises:
        Refused: the arguments are not what the tool asks for, or the tool is not set up correctly.
    """
    with _set_up():
        check_effect(Effect.QUERYABLE, integration.configuration)
    mapped = _mapped(tool, integration, arguments) | {KEY_PLACEHOLDER: idempotency_key}
    status = integration.configuration["status"]
    url, _ = _filled_path(str(status["url"]), mapped)
    query = [
        (name, PLACEHOLDER.sub(lambda match: _named(mapped, match.group(1)), value) if isinstance(value, str) else _query_text(value))
        for name, value in (status.get("query") or {}).items()
    ]
    method = str(status.get("method") or DEFAULT_STATUS_METHOD).upper()
    headers = _headers(status, integration, idempotency_key)
    if method == "GET":
        return ToolRequest(method, _with_query(url, query), headers)
    return _with_body(method, _with_query(url, query), headers, {KEY_PLACEHOLDER: idempotency_key})


def _mapped(tool: ToolSpec, integration: IntegrationSpec, arguments: dict[str, Any]) -> dict[str, Any]:
    with _set_up():
        check_configuration(integration.configuration)
        failures = validate(tool.parameters, arguments)
        if failures:
            raise Refused("The arguments are not what the tool asks for: " + "; ".join(failures) + ".")
        mapped = apply_mapping(integration.parameter_mapping, arguments)
    if not isinstance(mapped, dict):
        raise Refused("The tool is not set up correctly: its parameter_mapping must make an object.")
    return mapped


@contextmanager
def _set_up() -> Iterator[None]:
    """What is found wrong within is the tool's configuration, and said to be."""
    try:
        yield
    except Refused:
        raise
    except Rejected as error:
        raise Refused(f"The tool is not set up correctly: {error}") from None


def _headers(configured: Mapping[str, Any], integration: IntegrationSpec, idempotency_key: str) -> dict[str, str]:
    with _set_up():
        secret = {name: fill_secret(text, integration.secrets) for name, text in (configured.get("secret_headers") or {}).items()}
    headers = {"idempotency-key": idempotency_key, "accept": "application/json"}
    for name, value in ((configured.get("headers") or {}) | secret).items():
        headers[name.lower()] = value
    return headers


def _with_query(url: str, query: Iterable[tuple[str, str]]) -> str:
    pairs = list(query)
    if pairs:
        url += ("&" if "?" in url else "?") + urlencode(pairs, errors="replace")
    if len(url) > _MAX_ADDRESS:
        raise Refused(f"The arguments are too long: an address has at most {_MAX_ADDRESS} characters.")
    return url


def _with_body(method: str, url: str, headers: dict[str, str], document: Mapping[str, Any]) -> ToolRequest:
    content = json.dumps(document, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
    return ToolRequest(method, url, {"content-type": "application/json", **headers}, content)


def _filled_path(url: str, mapped: Mapping[str, Any]) -> tuple[str, set[str]]:
    """`url` with its placeholders filled, and the names that were used. Scheme and host stay what the operator wrote."""
    parts = urlsplit(url)
    used: set[str] = set()

    def value(name: str) -> str:
        used.add(name)
        text = _named(mapped, name)
        # Servers take dots for a way up, some of them even behind an encoded slash.
        if any(step in (".", "..") for step in text.replace("\\", "/").split("/")):
            raise Refused(f"The argument {name!r} must not be a path with . or .. in it.")
        return quote(text, safe="", errors="replace")

    path = PLACEHOLDER.sub(lambda match: value(match.group(1)), parts.path)
    if any(step in (".", "..") for step in path.split("/")):
        raise Refused("The arguments make a path with . or .. in it.")
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, "")), used


def _named(mapped: Mapping[str, Any], name: str) -> str:
    found = mapped.get(name)
    if found is None or isinstance(found, (dict, list)) or found == "":
        raise Refused(f"The argument {name!r} is needed for the tool's address, as a text or a number.")
    return _query_text(found)


def _query_pairs(arguments: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for name, value in arguments.items():
        if isinstance(value, list):
            pairs.extend((name, _query_text(item)) for item in value if item is not None)
        elif value is not None:
            pairs.append((name, _query_text(value)))
    return pairs


def _query_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
