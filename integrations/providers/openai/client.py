"""OpenAI's chat completions, and every server that speaks the same protocol at another `OPENAI_BASE_URL`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from engine.errors import Malformed, ProviderDown, RateLimited, Rejected, TurnlineError
from engine.events import ModelReply
from engine.safe_json import parse_foreign
from engine.turn.context import ModelRequest
from integrations import error_mapping
from integrations.http import HttpClients, Reply
from integrations.providers.openai.protocol import Assembly, Names, request_body
from integrations.redaction import redact
from integrations.sse_parser import ServerEvent, SseParser

WHOM = "The model provider openai"
_DRAIN_S = 0.25
_DONE = "[DONE]"
OWN_ADDRESS = "https://api.openai.com/"  # refuses whoever brings no key; other servers may want none


class OpenAI:
    """The vendor at `settings.openai_base_url`; stateless, so that one may be made for every call."""

    def __init__(self, outside: HttpClients) -> None:
        settings = outside.settings
        self._http = outside.models
        self._url = settings.openai_base_url.rstrip("/") + "/chat/completions"
        self._key = settings.openai_api_key.get_secret_value().strip()
        self._max_bytes = settings.model_max_bytes

    async def complete(self, request: ModelRequest, *, on_delta: Callable[[str], None] | None = None, deadline_s: float) -> ModelReply:
        """Return the model's whole reply, streamed: `on_delta` is given its text as it comes.

        Raises:
            RateLimited, ProviderDown, TimedOut, ReplyLost: it may be tried again.
            Rejected, Malformed: it may not.
        """
        if not self._key and self._url.startswith(OWN_ADDRESS):
            raise Rejected(f"{WHOM} was not asked: OPENAI_API_KEY is not set")
        names = Names(request)
        content = json.dumps(request_body(request, names), ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
        headers = {"content-type": "application/json", "accept": "text/event-stream, application/json"}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        listener = _Listener(Assembly(names, request.model_name, WHOM), on_delta)
        async with self._http.request(
            "POST", self._url, whom=WHOM, deadline_s=deadline_s, max_bytes=self._max_bytes, headers=headers, content=content
        ) as reply:
            if not reply.ok:
                raise await self._error_of(reply, request)
            reply.refuse_encoding()
            if reply.media_type == "text/event-stream":
                await self._read_stream(reply, listener, request)
            elif reply.media_type == "application/json":
                await self._read_whole(reply, listener, request)
            else:
                raise Malformed(f"{WHOM} answered with {redact(reply.media_type, limit=60) or 'no content type'} instead of JSON or events")
            request_id = reply.headers.get("x-request-id")
        return replace(
            listener.assembly.reply(),
            provider_request_id=request_id[:200] if request_id else None,
            ttft_ms=listener.ttft_ms,
            latency_ms=listener.elapsed_ms(),
        )

    async def _read_stream(self, reply: Reply, listener: _Listener, request: ModelRequest) -> None:
        parser = SseParser(whom=WHOM)
        async for chunk in reply:
            for event in parser.feed(chunk):
                if event.data.strip() == _DONE:
                    await reply.drain(_DRAIN_S)
                    return
                self._take_event(event, listener, request)

    def _take_event(self, event: ServerEvent, listener: _Listener, request: ModelRequest) -> None:
        chunk = parse_foreign(event.data, max_bytes=self._max_bytes, peer=WHOM, repair=False).value
        if isinstance(chunk, Mapping) and (event.event == "error" or chunk.get("error")):
            raise self._error_in(chunk.get("error") or chunk, request)
        listener.heard(listener.assembly.add_chunk(chunk))

    async def _read_whole(self, reply: Reply, listener: _Listener, request: ModelRequest) -> None:
        completion = parse_foreign(await reply.body(), max_bytes=self._max_bytes, peer=WHOM).value
        if isinstance(completion, Mapping) and completion.get("error"):
            raise self._error_in(completion["error"], request)
        listener.heard(listener.assembly.add_whole(completion))

    async def _error_of(self, reply: Reply, request: ModelRequest) -> TurnlineError:
        """The error that an answer with a failing status is."""
        try:
            error = parse_foreign(await reply.beginning(), max_bytes=self._max_bytes).value
        except Malformed:
            error = None  # HTML of a gateway, or nothing: the status says enough
        if isinstance(error, Mapping):
            error = error.get("error") or error
        return error_mapping.of_status(reply.status, reply.headers, WHOM, self._detail(error, request))

    def _error_in(self, error: object, request: ModelRequest) -> TurnlineError:
        """The error that is reported inside an answer whose status was 200; tokens may have been used by then."""
        kind = " ".join(str(error.get(field, "")) for field in ("code", "type", "status")) if isinstance(error, Mapping) else ""
        said = f"{WHOM} broke off with an error: {self._detail(error, request) or 'no reason given'}"
        if "rate_limit" in kind or "429" in kind:
            return RateLimited(said, maybe_done=True)
        if "invalid_request" in kind or any(status in kind for status in ("400", "401", "403", "404")):
            return Rejected(said, maybe_done=True)
        return ProviderDown(said, maybe_done=True)

    def _detail(self, error: object, request: ModelRequest) -> str:
        message = error.get("message") if isinstance(error, Mapping) else error
        if not isinstance(message, str):
            return ""
        code = error.get("code") if isinstance(error, Mapping) else None
        quoted = redact(message, secrets=[self._key], echoes=[part.text for part in request.messages])
        return f"{quoted} ({redact(code, limit=60)})" if isinstance(code, str) and code else quoted


class _Listener:
    """The answer as it grows, when its first piece came, and who wants to hear its text."""

    def __init__(self, assembly: Assembly, on_delta: Callable[[str], None] | None) -> None:
        self.assembly = assembly
        self.ttft_ms: int | None = None
        self._on_delta = on_delta
        self._began = time.monotonic()

    def heard(self, text: str) -> None:
        """Pass `text` on, and note the time if it is the first of the answer."""
        if self.ttft_ms is None and self.assembly.started:
            self.ttft_ms = self.elapsed_ms()
        if text and self._on_delta is not None:
            self._on_delta(text)

    def elapsed_ms(self) -> int:
        """Milliseconds since the request was made."""
        return round((time.monotonic() - self._began) * 1000)
