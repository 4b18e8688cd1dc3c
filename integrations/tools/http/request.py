"""Build the HTTP request of a tool call, or of its status query, from the configuration and the mapped arguments."""

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
from engine.tools.spec import IntegrationSpec, ToolSpec
from integrations.tools.base import Refused

_METHODS_WITHOUT_BODY = frozenset({"GET", "DELETE"})
_MAX_URL_CHARS = 16_000


@dataclass(frozen=True, slots=True)
class ToolRequest:
    """One HTTP request, ready to be sent."""

    method: str
    url: str
    headers: dict[str, str]
    content: bytes | None = None


def call_request(tool: ToolSpec, spec: IntegrationSpec, arguments: dict[str, Any], idempotency_key: str) -> ToolRequest:
    """Return the request that executes the call.

    Mapped arguments that the path does not name go into the query (GET, DELETE) or the JSON body.

    Raises:
        Refused: the arguments do not match the tool's schema, or the tool is not set up correctly.
    """
    mapped = _mapped(tool, spec, arguments)
    configuration = spec.configuration
    url, used = _filled_path(str(configuration["url"]), mapped)
    remaining = {name: argument for name, argument in mapped.items() if name not in used}
    method = str(configuration.get("method") or DEFAULT_METHOD).upper()
    query = [(name, _query_text(value)) for name, value in (configuration.get("query") or {}).items()]
    headers = _headers(configuration, spec, idempotency_key)
    if method in _METHODS_WITHOUT_BODY:
        return ToolRequest(method, _with_query(url, [*query, *_query_pairs(remaining)]), headers)
    return _with_body(method, _with_query(url, query), headers, remaining)


def status_request(tool: ToolSpec, spec: IntegrationSpec, arguments: dict[str, Any], idempotency_key: str) -> ToolRequest:
    """Return the request that asks whether the call with `idempotency_key` was executed. Sends only what `status` names.

    Raises:
        Refused: the arguments do not match the tool's schema, or the tool is not set up correctly.
    """
    with _configuration_errors():
        check_effect(Effect.QUERYABLE, spec.configuration)
    mapped = _mapped(tool, spec, arguments) | {KEY_PLACEHOLDER: idempotency_key}
    status = spec.configuration["status"]
    url, _ = _filled_path(str(status["url"]), mapped)
    configured_query: dict[str, Any] = status.get("query") or {}
    query = [(name, _filled(value, mapped) if isinstance(value, str) else _query_text(value)) for name, value in configured_query.items()]
    method = str(status.get("method") or DEFAULT_STATUS_METHOD).upper()
    headers = _headers(status, spec, idempotency_key)
    if method == "GET":
        return ToolRequest(method, _with_query(url, query), headers)
    return _with_body(method, _with_query(url, query), headers, {KEY_PLACEHOLDER: idempotency_key})


def _mapped(tool: ToolSpec, spec: IntegrationSpec, arguments: dict[str, Any]) -> dict[str, Any]:
    with _configuration_errors():
        check_configuration(spec.configuration)
        failures = validate(tool.parameters, arguments)
        if failures:
            raise Refused("The arguments do not match the tool's schema: " + "; ".join(failures) + ".")
        mapped = apply_mapping(spec.parameter_mapping, arguments)
    if not isinstance(mapped, dict):
        raise Refused("The tool is not set up correctly: its parameter_mapping must return an object.")
    return mapped


@contextmanager
def _configuration_errors() -> Iterator[None]:
    """Turn errors within the block into Refused, blaming the tool's configuration."""
    try:
        yield
    except Refused:
        raise
    except Rejected as error:
        raise Refused(f"The tool is not set up correctly: {error}") from None


def _headers(configured: Mapping[str, Any], spec: IntegrationSpec, idempotency_key: str) -> dict[str, str]:
    with _configuration_errors():
        secret = {name: fill_secret(text, spec.secrets) for name, text in (configured.get("secret_headers") or {}).items()}
    headers = {"idempotency-key": idempotency_key, "accept": "application/json"}
    for name, value in ((configured.get("headers") or {}) | secret).items():
        headers[name.lower()] = value
    return headers


def _with_query(url: str, query: Iterable[tuple[str, str]]) -> str:
    pairs = list(query)
    if pairs:
        url += ("&" if "?" in url else "?") + urlencode(pairs, errors="replace")
    if len(url) > _MAX_URL_CHARS:
        raise Refused(f"The arguments are too long: the URL has at most {_MAX_URL_CHARS} characters.")
    return url


def _with_body(method: str, url: str, headers: dict[str, str], document: Mapping[str, Any]) -> ToolRequest:
    content = json.dumps(document, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
    return ToolRequest(method, url, {"content-type": "application/json", **headers}, content)


def _filled_path(url: str, mapped: Mapping[str, Any]) -> tuple[str, set[str]]:
    """Return `url` with the placeholders of its path filled, and the names used. Scheme and host are never filled."""
    parts = urlsplit(url)
    used: set[str] = set()

    def value(name: str) -> str:
        used.add(name)
        text = _placeholder_text(mapped, name)
        # Servers resolve dot segments, some of them even after an encoded slash.
        if any(segment in (".", "..") for segment in text.replace("\\", "/").split("/")):
            raise Refused(f"The argument {name!r} must not be a path with . or .. in it.")
        return quote(text, safe="", errors="replace")

    path = PLACEHOLDER.sub(lambda match: value(match.group(1)), parts.path)
    if any(segment in (".", "..") for segment in path.split("/")):
        raise Refused("The arguments result in a path with . or .. in it.")
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, "")), used


def _filled(template: str, mapped: Mapping[str, Any]) -> str:
    return PLACEHOLDER.sub(lambda match: _placeholder_text(mapped, match.group(1)), template)


def _placeholder_text(mapped: Mapping[str, Any], name: str) -> str:
    found = mapped.get(name)
    if found is None or isinstance(found, (dict, list)) or found == "":
        raise Refused(f"The argument {name!r} is required for the tool's URL, as a string or a number.")
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
