"""`custom_tool`: a tool call as an HTTP request. Its configuration is described in `engine.tool_config`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

from engine.brief import IntegrationSpec, ToolSpec
from engine.errors import Malformed, Rejected
from engine.events import ToolOutcome, ToolStatus
from engine.sanitise import clean_text, parse_foreign
from engine.schemas import apply_mapping, validate
from engine.tool_config import DEFAULT_METHOD, PLACEHOLDER, check_configuration, fill_secret
from integrations import faults
from integrations.http import Outside, Reply, Sending
from integrations.redaction import redact, value_without_secrets

WHOM = "The tool's server"
_IN_QUERY = frozenset({"GET", "DELETE"})
_CLIENT_ERROR_QUOTE = 1_000
_MAX_ADDRESS = 16_000


@dataclass(frozen=True, slots=True)
class _Request:
    """What is sent: the mapped arguments have found their places."""

    method: str
    url: str
    headers: dict[str, str]
    content: bytes | None


class _Failed(Exception):
    """The call ends here, with a sentence that the model can act on."""


class HttpTool:
    """Tool calls over HTTP, through the guarded client."""

    def __init__(self, outside: Outside) -> None:
        self._http = outside.tools
        self._timeout_s = outside.settings.tool_timeout_s
        self._max_bytes = outside.settings.tool_max_bytes

    async def call(
        self,
        tool: ToolSpec,
        integration: IntegrationSpec,
        arguments: dict[str, Any],
        *,
        idempotency_key: str,
        deadline_s: float,
        sending: Sending,
    ) -> ToolOutcome:
        """Check the arguments, send one request, check the result; see `Integration.call`."""
        try:
            request = _request(tool, integration, arguments, idempotency_key)
            result = await self._exchange(request, tool, integration, deadline_s, sending)
        except _Failed as failure:
            return ToolOutcome(ToolStatus.FAILED, error=str(failure), integration_id=integration.id)
        return ToolOutcome(ToolStatus.SUCCEEDED, result=result, integration_id=integration.id)

    async def _exchange(self, request: _Request, tool: ToolSpec, integration: IntegrationSpec, deadline_s: float, sending: Sending) -> Any:
        secrets = integration.secrets.values()
        async with self._http.exchange(
            request.method,
            request.url,
            whom=WHOM,
            deadline_s=min(deadline_s, integration.configuration.get("timeout_s") or self._timeout_s),
            max_bytes=self._max_bytes,
            headers=request.headers,
            content=request.content,
            sending=sending,
        ) as reply:
            if not reply.ok:
                await self._fail(reply, integration)
            try:
                document = await self._document(reply)
            except Malformed as error:
                # The server has said 2xx: it happened, only its answer is of no use.
                raise _Failed(f"It was carried out, but the answer cannot be used: {error}.") from None
        document = value_without_secrets(document, secrets) if secrets else document
        return _result(document, tool, integration)

    async def _document(self, reply: Reply) -> Any:
        body = await reply.body()
        if not body.strip():
            return None
        if reply.media_type.endswith(("/json", "+json")) or not reply.media_type:
            return parse_foreign(body, max_bytes=self._max_bytes, whom=WHOM).value
        return {"text": clean_text(body.decode("utf-8", "replace"))}

    async def _fail(self, reply: Reply, integration: IntegrationSpec) -> NoReturn:
        """Raise what a failing status means: most 4xx are an answer for the model, the rest is for the caller to try again or not."""
        body = clean_text((await reply.beginning()).decode("utf-8", "replace"))
        error = faults.of_status(reply.status, reply.headers, WHOM, server_errors_maybe_done=True)
        if isinstance(error, Rejected) and 400 <= reply.status < 500:
            quoted = redact(body, secrets=integration.secrets.values(), limit=_CLIENT_ERROR_QUOTE)
            raise _Failed(f"The tool answered {reply.status}" + (f": {quoted}" if quoted else "."))
        raise error


def _request(tool: ToolSpec, integration: IntegrationSpec, arguments: dict[str, Any], idempotency_key: str) -> _Request:
    configuration = integration.configuration
    try:
        check_configuration(configuration)
        failures = validate(tool.parameters, arguments)
        if failures:
            raise _Failed("The arguments are not what the tool asks for: " + "; ".join(failures) + ".")
        mapped = apply_mapping(integration.parameter_mapping, arguments)
        secret_headers = {
            name: fill_secret(template, integration.secrets) for name, template in (configuration.get("secret_headers") or {}).items()
        }
    except Rejected as error:
        raise _Failed(f"The tool is not set up correctly: {error}") from None
    if not isinstance(mapped, dict):
        raise _Failed("The tool is not set up correctly: its parameter_mapping must make an object.")
    url, rest = _fill_path(str(configuration["url"]), mapped)
    headers = {"idempotency-key": idempotency_key, "accept": "application/json"}
    for name, value in ((configuration.get("headers") or {}) | secret_headers).items():
        headers[name.lower()] = value
    method = str(configuration.get("method") or DEFAULT_METHOD).upper()
    query = [(name, _query_text(value)) for name, value in (configuration.get("query") or {}).items()]
    content = None
    if method in _IN_QUERY:
        query += _query_pairs(rest)
    else:
        content = json.dumps(rest, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
        headers.setdefault("content-type", "application/json")
    if query:
        url += ("&" if "?" in url else "?") + urlencode(query, errors="replace")
    if len(url) > _MAX_ADDRESS:
        raise _Failed(f"The arguments are too long: an address has at most {_MAX_ADDRESS} characters.")
    return _Request(method, url, headers, content)


def _fill_path(url: str, mapped: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """`url` with its placeholders filled, and the arguments that are left. Scheme and host stay what the operator wrote."""
    parts = urlsplit(url)
    used: set[str] = set()

    def value(name: str) -> str:
        used.add(name)
        found = mapped.get(name)
        if found is None or isinstance(found, (dict, list)) or found == "":
            raise _Failed(f"The argument {name!r} is needed for the tool's address, as a text or a number.")
        text = _query_text(found)
        # Servers take dots for a way up, some of them even behind an encoded slash.
        if any(step in (".", "..") for step in text.replace("\\", "/").split("/")):
            raise _Failed(f"The argument {name!r} must not be a path with . or .. in it.")
        return quote(text, safe="", errors="replace")

    path = PLACEHOLDER.sub(lambda match: value(match.group(1)), parts.path)
    if any(step in (".", "..") for step in path.split("/")):
        raise _Failed("The arguments make a path with . or .. in it.")
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, "")), {
        name: argument for name, argument in mapped.items() if name not in used
    }


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


def _result(document: Any, tool: ToolSpec, integration: IntegrationSpec) -> Any:
    try:
        result = apply_mapping(integration.response_mapping, document)
        failures = validate(tool.return_schema, result) if tool.return_schema is not None else []
    except Rejected as error:
        raise _Failed(f"It was carried out, but the tool is not set up correctly: {error}") from None
    if failures:
        raise _Failed("It was carried out, but the result is not what the tool promises: " + "; ".join(failures) + ".")
    return result
