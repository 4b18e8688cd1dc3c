"""HTTP tools (`custom_tool`): each call is one HTTP request, configured as `engine.tools.http_config` describes."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any, NoReturn

from engine.enums import ToolStatus
from engine.errors import Malformed, ProviderDown, Rejected
from engine.events import ToolOutcome
from engine.safe_json import clean_text, parse_foreign
from engine.tools.json_schema import apply_mapping, validate
from engine.tools.spec import IntegrationSpec, ToolSpec
from integrations import error_mapping
from integrations.http import HttpClients, HttpResponse, RequestCounter
from integrations.redaction import redact, value_without_secrets
from integrations.tools.base import Refused
from integrations.tools.http import health
from integrations.tools.http.request import ToolRequest, call_request, status_request

PEER = "The tool's server"
STATUS_PEER = "The tool's status address"
_MAX_QUOTED_CHARS = 1_000
# Accepted, conflict, locked: the server is still executing the call.
_IN_PROGRESS = frozenset({202, 409, 423})


class HttpTool:
    """Executes tool calls over HTTP, through the client behind the SSRF guard."""

    def __init__(self, http_clients: HttpClients) -> None:
        self._http = http_clients.tools
        self._timeout_s = http_clients.settings.tool_timeout_s
        self._max_bytes = http_clients.settings.tool_max_bytes

    async def call(
        self,
        tool: ToolSpec,
        spec: IntegrationSpec,
        arguments: dict[str, Any],
        *,
        idempotency_key: str,
        deadline_s: float,
        counter: RequestCounter,
    ) -> ToolOutcome:
        """Validate the arguments, send one request, validate the result. See `Integration.call`."""
        request = call_request(tool, spec, arguments, idempotency_key)
        async with self._send(request, PEER, spec, deadline_s, counter) as response:
            if not response.ok:
                await self._raise_for_status(response, spec)
            try:
                document = await self._document(response)
            except Malformed as error:
                # A 2xx: the call was executed, only its answer is unusable.
                return _unusable(f"the answer cannot be used: {error}.", spec)
        return _outcome(document, spec.response_mapping, tool, spec)

    async def status(
        self, tool: ToolSpec, spec: IntegrationSpec, arguments: dict[str, Any], *, idempotency_key: str, deadline_s: float
    ) -> ToolOutcome | None:
        """Query the call's status once. See `Integration.status`."""
        request = status_request(tool, spec, arguments, idempotency_key)
        status: dict[str, Any] = spec.configuration["status"]
        async with self._send(request, STATUS_PEER, spec, deadline_s) as response:
            if response.status == 404:
                return None
            if response.status in _IN_PROGRESS:
                raise ProviderDown(f"{STATUS_PEER} answered {response.status}", maybe_done=True)
            if response.status != 200:
                raise error_mapping.of_status(response.status, response.headers, STATUS_PEER)
            document = await self._status_document(response)
        if not _is_done(status.get("done"), document):
            return None
        result = status.get("result")
        return _outcome(document, result if result is not None else spec.response_mapping, tool, spec)

    async def probe(self, spec: IntegrationSpec, *, deadline_s: float) -> None:
        """Check that the server is reachable. See `integrations.tools.http.health`."""
        await health.probe(spec, self._http, deadline_s)

    def _send(
        self, request: ToolRequest, peer: str, spec: IntegrationSpec, deadline_s: float, counter: RequestCounter | None = None
    ) -> AbstractAsyncContextManager[HttpResponse]:
        return self._http.request(
            request.method,
            request.url,
            peer=peer,
            deadline_s=min(deadline_s, spec.configuration.get("timeout_s") or self._timeout_s),
            max_bytes=self._max_bytes,
            headers=request.headers,
            content=request.content,
            counter=counter,
        )

    async def _document(self, response: HttpResponse) -> Any:
        body = await response.body()
        if not body.strip():
            return None
        if response.media_type.endswith(("/json", "+json")) or not response.media_type:
            return parse_foreign(body, max_bytes=self._max_bytes, peer=PEER).value
        return {"text": clean_text(body.decode("utf-8", "replace"))}

    async def _status_document(self, response: HttpResponse) -> Any:
        """Return the body parsed as JSON, whatever its content type.

        A proxy's HTML page with status 200 does not prove that the call was executed.
        """
        body = await response.body()
        return parse_foreign(body, max_bytes=self._max_bytes, peer=STATUS_PEER).value if body.strip() else None

    async def _raise_for_status(self, response: HttpResponse, spec: IntegrationSpec) -> NoReturn:
        """Raise the error for a status that is not 2xx: Refused for most 4xx, which the model can act on."""
        body = clean_text((await response.read_prefix()).decode("utf-8", "replace"))
        error = error_mapping.of_status(response.status, response.headers, PEER, server_errors_maybe_done=True)
        if isinstance(error, Rejected) and 400 <= response.status < 500:
            quoted = redact(body, secrets=spec.secrets.values(), limit=_MAX_QUOTED_CHARS)
            raise Refused(f"The tool answered {response.status}" + (f": {quoted}" if quoted else "."))
        raise error


def _is_done(expression: str | None, document: Any) -> bool:
    """Return True if a status answer says that the call was executed.

    Raises:
        Malformed: `expression` cannot be applied, or finds nothing.
    """
    if expression is None:
        return True
    try:
        done = apply_mapping(expression, document)
    except Rejected as error:
        raise Malformed(f"{STATUS_PEER} gave an answer that cannot be read: {error}") from None
    # JMESPath returns null for any unexpected answer; treating that as "no" would send the call a second time.
    if done is None:
        raise Malformed(f"{STATUS_PEER} gave an answer in which status.done finds nothing")
    return bool(done)


def _outcome(document: Any, mapping: Any, tool: ToolSpec, spec: IntegrationSpec) -> ToolOutcome:
    """Return the outcome of a call that was executed."""
    secrets = spec.secrets.values()
    try:
        result = apply_mapping(mapping, value_without_secrets(document, secrets) if secrets else document)
        failures = validate(tool.return_schema, result) if tool.return_schema is not None else []
    except Rejected as error:
        return _unusable(f"the tool is not set up correctly: {error}", spec)
    if failures:
        return _unusable("the result does not match the tool's return schema: " + "; ".join(failures) + ".", spec)
    return ToolOutcome(ToolStatus.SUCCEEDED, result=result, integration_id=spec.id)


def _unusable(why: str, spec: IntegrationSpec) -> ToolOutcome:
    return ToolOutcome(ToolStatus.FAILED, error=f"It was executed, but {why}", integration_id=spec.id)
