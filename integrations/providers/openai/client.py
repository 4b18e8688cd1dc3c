"""OpenAI's chat completions, and any compatible server that `OPENAI_BASE_URL` names."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace

from engine.errors import Malformed, ProviderDown, RateLimited, Rejected, TurnlineError
from engine.events import ModelReply
from engine.model.request import ModelRequest
from engine.safe_json import parse_foreign
from integrations import error_mapping
from integrations.http import HttpClients, HttpResponse
from integrations.providers.base import OnDelta
from integrations.providers.openai.protocol import Assembly, ToolNames, request_body
from integrations.redaction import redact
from integrations.sse_parser import ServerEvent, SseParser

PEER = "The model provider openai"
_DRAIN_S = 0.25
_DONE = "[DONE]"
OWN_ADDRESS = "https://api.openai.com/"  # requires a key; other servers may not


class OpenAI:
    """The provider at `settings.openai_base_url`. Stateless: one may be made per call."""

    def __init__(self, http_clients: HttpClients) -> None:
        settings = http_clients.settings
        self._http = http_clients.models
        self._url = settings.openai_base_url.rstrip("/") + "/chat/completions"
        self._key = settings.openai_api_key.get_secret_value().strip()
        self._max_bytes = settings.model_max_bytes

    async def complete(self, request: ModelRequest, *, on_delta: OnDelta | None = None, deadline_s: float) -> ModelReply:
        """Return the model's complete reply; `on_delta` receives the text as it streams in.

        Raises:
            RateLimited, ProviderDown, TimedOut, ReplyLost: a retry may help.
            Rejected, Malformed: a retry cannot help.
        """
        if not self._key and self._url.startswith(OWN_ADDRESS):
            raise Rejected(f"{PEER} was not contacted: OPENAI_API_KEY is not set")
        names = ToolNames(request)
        content = json.dumps(request_body(request, names), ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
        headers = {"content-type": "application/json", "accept": "text/event-stream, application/json"}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        collector = _ReplyCollector(Assembly(names, request.model_name, PEER), on_delta)
        async with self._http.request(
            "POST", self._url, peer=PEER, deadline_s=deadline_s, max_bytes=self._max_bytes, headers=headers, content=content
        ) as response:
            if not response.ok:
                raise await self._status_error(response, request)
            response.reject_compression()
            if response.media_type == "text/event-stream":
                await self._read_stream(response, collector, request)
            elif response.media_type == "application/json":
                await self._read_whole(response, collector, request)
            else:
                content_type = redact(response.media_type, limit=60) or "no content type"
                raise Malformed(f"{PEER} answered with {content_type} instead of JSON or events")
            request_id = response.headers.get("x-request-id")
        return replace(
            collector.assembly.reply(),
            provider_request_id=request_id[:200] if request_id else None,
            ttft_ms=collector.ttft_ms,
            latency_ms=collector.elapsed_ms(),
        )

    async def _read_stream(self, response: HttpResponse, collector: _ReplyCollector, request: ModelRequest) -> None:
        parser = SseParser(peer=PEER)
        async for chunk in response:
            for event in parser.feed(chunk):
                if event.data.strip() == _DONE:
                    await response.drain(_DRAIN_S)
                    return
                self._take_event(event, collector, request)

    def _take_event(self, event: ServerEvent, collector: _ReplyCollector, request: ModelRequest) -> None:
        chunk = parse_foreign(event.data, max_bytes=self._max_bytes, peer=PEER, repair=False).value
        if isinstance(chunk, Mapping) and (event.event == "error" or chunk.get("error")):
            raise self._embedded_error(chunk.get("error") or chunk, request)
        collector.emit(collector.assembly.add_chunk(chunk))

    async def _read_whole(self, response: HttpResponse, collector: _ReplyCollector, request: ModelRequest) -> None:
        completion = parse_foreign(await response.body(), max_bytes=self._max_bytes, peer=PEER).value
        if isinstance(completion, Mapping) and completion.get("error"):
            raise self._embedded_error(completion["error"], request)
        collector.emit(collector.assembly.add_whole(completion))

    async def _status_error(self, response: HttpResponse, request: ModelRequest) -> TurnlineError:
        """Return the error for a response whose status is not 2xx."""
        try:
            error = parse_foreign(await response.read_prefix(), max_bytes=self._max_bytes).value
        except Malformed:
            error = None  # a gateway's HTML, or an empty body
        if isinstance(error, Mapping):
            error = error.get("error") or error
        return error_mapping.of_status(response.status, response.headers, PEER, self._detail(error, request))

    def _embedded_error(self, error: object, request: ModelRequest) -> TurnlineError:
        """Return the error that is reported inside a response with status 200. Tokens may have been billed."""
        kind = " ".join(str(error.get(field, "")) for field in ("code", "type", "status")) if isinstance(error, Mapping) else ""
        message = f"{PEER} reported an error in its answer: {self._detail(error, request) or 'no reason given'}"
        if "rate_limit" in kind or "429" in kind:
            return RateLimited(message, maybe_done=True)
        if "invalid_request" in kind or any(status in kind for status in ("400", "401", "403", "404")):
            return Rejected(message, maybe_done=True)
        return ProviderDown(message, maybe_done=True)

    def _detail(self, error: object, request: ModelRequest) -> str:
        message = error.get("message") if isinstance(error, Mapping) else error
        if not isinstance(message, str):
            return ""
        code = error.get("code") if isinstance(error, Mapping) else None
        quoted = redact(message, secrets=[self._key], echoes=[part.text for part in request.messages])
        return f"{quoted} ({redact(code, limit=60)})" if isinstance(code, str) and code else quoted


class _ReplyCollector:
    """Collects a streamed reply, passes its text to `on_delta` and measures the time to the first token."""

    def __init__(self, assembly: Assembly, on_delta: OnDelta | None) -> None:
        self.assembly = assembly
        self.ttft_ms: int | None = None
        self._on_delta = on_delta
        self._started = time.monotonic()

    def emit(self, text: str) -> None:
        """Pass `text` to `on_delta`; record the time when the first part of the reply arrives."""
        if self.ttft_ms is None and self.assembly.started:
            self.ttft_ms = self.elapsed_ms()
        if text and self._on_delta is not None:
            self._on_delta(text)

    def elapsed_ms(self) -> int:
        """Return the milliseconds since the request was made."""
        return round((time.monotonic() - self._started) * 1000)
