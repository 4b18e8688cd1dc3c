"""`custom_tool`: a tool call as an HTTP request. Its configuration is described in `engine.tools.http_config`."""

from __future__ import annotations

from typing import Any, NoReturn

from engine.enums import ToolStatus
from engine.errors import Malformed, ProviderDown, Rejected
from engine.events import ToolOutcome
from engine.safe_json import clean_text, parse_foreign
from engine.tools.json_schema import apply_mapping, validate
from engine.turn.context import IntegrationSpec, ToolSpec
from integrations import error_mapping
from integrations.http import HttpClients, Reply, RequestCounter
from integrations.redaction import redact, value_without_secrets
from integrations.tools.http.request import Refused, call_request, status_request

WHOM = "The tool's server"
WHOSE_STATUS = "The tool's status address"
_CLIENT_ERROR_QUOTE = 1_000
# Accepted, in conflict, locked: what a server says of a call that it is still carrying out.
_STILL_AT_IT = frozenset({202, 409, 423})


class HttpTool:
    """Tool calls over HTTP, through the guarded client."""

    def __init__(self, outside: HttpClients) -> None:
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
        counter: RequestCounter,
    ) -> ToolOutcome:
        """Check the arguments, send one request, check the result; see `Integration.call`."""
        request = call_request(tool, integration, arguments, idempotency_key)
        async with self._http.request(
            request.method,
            request.url,
            whom=WHOM,
            deadline_s=self._within(deadline_s, integration),
            max_bytes=self._max_bytes,
            headers=request.headers,
            content=request.content,
            counter=counter,
        ) as reply:
            if not reply.ok:
                await self._refuse(reply, integration)
            try:
                document = await self._document(reply)
            except Malformed as error:
                # The server has said 2xx: it happened, only its answer is of no use.
                return _unusable(f"the answer cannot be used: {error}.", integration)
        return _outcome(document, integration.response_mapping, tool, integration)

    async def status(
        self, tool: ToolSpec, integration: IntegrationSpec, arguments: dict[str, Any], *, idempotency_key: str, deadline_s: float
    ) -> ToolOutcome | None:
        """Ask once whether the call happened; see `Integration.status`."""
        request = status_request(tool, integration, arguments, idempotency_key)
        status: dict[str, Any] = integration.configuration["status"]
        async with self._http.request(
            request.method,
            request.url,
            whom=WHOSE_STATUS,
            deadline_s=self._within(deadline_s, integration),
            max_bytes=self._max_bytes,
            headers=request.headers,
            content=request.content,
        ) as reply:
            if reply.status == 404:
                return None
            if reply.status in _STILL_AT_IT:
                raise ProviderDown(f"{WHOSE_STATUS} answered {reply.status}", maybe_done=True)
            if reply.status != 200:
                raise error_mapping.of_status(reply.status, reply.headers, WHOSE_STATUS)
            document = await self._status_document(reply)
        if not _said_done(status.get("done"), document):
            return None
        result = status.get("result")
        return _outcome(document, result if result is not None else integration.response_mapping, tool, integration)

    def _within(self, deadline_s: float, integration: IntegrationSpec) -> float:
        return min(deadline_s, integration.configuration.get("timeout_s") or self._timeout_s)

    async def _document(self, reply: Reply) -> Any:
        body = await reply.body()
        if not body.strip():
            return None
        if reply.media_type.endswith(("/json", "+json")) or not reply.media_type:
            return parse_foreign(body, max_bytes=self._max_bytes, peer=WHOM).value
        return {"text": clean_text(body.decode("utf-8", "replace"))}

    async def _status_document(self, reply: Reply) -> Any:
        """The answer's JSON, whatever type it claims: a proxy's page with status 200 is no proof that something happened."""
        body = await reply.body()
        return parse_foreign(body, max_bytes=self._max_bytes, peer=WHOSE_STATUS).value if body.strip() else None

    async def _refuse(self, reply: Reply, integration: IntegrationSpec) -> NoReturn:
        """Raise what a failing status means: most 4xx are an answer for the model, the rest is for the caller to try again or not."""
        body = clean_text((await reply.beginning()).decode("utf-8", "replace"))
        error = error_mapping.of_status(reply.status, reply.headers, WHOM, server_errors_maybe_done=True)
        if isinstance(error, Rejected) and 400 <= reply.status < 500:
            quoted = redact(body, secrets=integration.secrets.values(), limit=_CLIENT_ERROR_QUOTE)
            raise Refused(f"The tool answered {reply.status}" + (f": {quoted}" if quoted else "."))
        raise error


def _said_done(expression: str | None, document: Any) -> bool:
    """Whether a status answer says that the call happened.

    Raises:
        Malformed: it says neither.
    """
    if expression is None:
        return True
    try:
        said = apply_mapping(expression, document)
    except Rejected as error:
        raise Malformed(f"{WHOSE_STATUS} gave an answer that cannot be read: {error}") from None
    # JMESPath finds null in any answer that is not as expected; taken for a no, it would have the call made a second time.
    if said is None:
        raise Malformed(f"{WHOSE_STATUS} gave an answer in which status.done finds nothing")
    return bool(said)


def _outcome(document: Any, mapping: Any, tool: ToolSpec, integration: IntegrationSpec) -> ToolOutcome:
    """What a call that was carried out comes to."""
    secrets = integration.secrets.values()
    try:
        result = apply_mapping(mapping, value_without_secrets(document, secrets) if secrets else document)
        failures = validate(tool.return_schema, result) if tool.return_schema is not None else []
    except Rejected as error:
        return _unusable(f"the tool is not set up correctly: {error}", integration)
    if failures:
        return _unusable("the result is not what the tool promises: " + "; ".join(failures) + ".", integration)
    return ToolOutcome(ToolStatus.SUCCEEDED, result=result, integration_id=integration.id)


def _unusable(why: str, integration: IntegrationSpec) -> ToolOutcome:
    return ToolOutcome(ToolStatus.FAILED, error=f"It was carried out, but {why}", integration_id=integration.id)
