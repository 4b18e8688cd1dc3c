"""The sandbox server: routes requests to the fake model, the tools and the counts."""

from __future__ import annotations

import asyncio
import itertools
from collections import OrderedDict
from typing import Any, Self

from sandbox import bad_transport, help_page, markers, openai_format, validate
from sandbox.bad_documents import corrupt_answer, corrupt_documents
from sandbox.connection import Connection, Request
from sandbox.counts import Counts
from sandbox.faults import FOREVER, FaultSchedule, parse_fault
from sandbox.model import Model, last_user_index, text_of
from sandbox.replies import EVENT_STREAM, Reply, Script, error_reply, json_reply, script
from sandbox.tools import ToolServer

MODELS = ("gpt-4.1", "gpt-4.1-mini", "gpt-4o", "gpt-4o-mini", "gpt-5", "gpt-5-mini", "o4-mini")


class Sandbox:
    """The fake model provider and tool server on one port. `async with Sandbox(port=0) as sandbox` serves until the block ends.

    `pace_s` is the time between two bytes, or two headers, of a slow response.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        latency_s: float = 0.0,
        tool_latency_s: float = 0.0,
        token_s: float = 0.0,
        pace_s: float = 1.0,
    ) -> None:
        self.host, self.port = host, port
        self.counts = Counts()
        self._latency_s, self._token_s, self._pace_s = latency_s, token_s, pace_s
        self._faults = FaultSchedule()
        self._model = Model()
        self._tools = ToolServer(self.counts, self._faults, tool_latency_s, pace_s, OrderedDict())
        self._numbers = itertools.count(1)
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """The server's URL without a path. The model provider is at `/v1` below it."""
        return f"http://{self.host}:{self.port}"

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self.answer, self._connections), self.host, self.port, backlog=4096)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop at once and drop all connections."""
        assert self._server is not None
        self._server.close()
        for connection in list(self._connections):
            connection.abort()
        await self._server.wait_closed()

    def answer(self, request: Request) -> Script:
        """Return the script that answers `request`."""
        path = request.path.rstrip("/") or "/"
        if path == "/v1/chat/completions":
            return self._completion(request) if request.method == "POST" else script(_not_allowed())
        if path.startswith("/tools/") and path.endswith("/status"):
            return self._tools.status(path[7:-7], request) if request.method in ("POST", "GET") else script(_not_allowed())
        if path.startswith("/tools/"):
            return self._tools.answer(path[7:], request) if request.method in ("POST", "GET") else script(_not_allowed())
        return script(self._other(path, request))

    def _other(self, path: str, request: Request) -> Reply:
        if path == "/":
            return Reply(200, help_page.text().encode(), "text/plain; charset=utf-8")
        if path == "/_sandbox/counts":
            return json_reply(self.counts.document(brief=request.query.get("brief", "0") not in ("", "0")))
        if path == "/_sandbox/asked":
            latest = list(self.counts.latest)
            fields = [{name: value for name, value in one.items() if name != "messages"} for one in latest]
            return json_reply({"asked": [one["messages"] for one in latest], "with": fields})
        if path == "/_sandbox/reset":
            return self._reset() if request.method == "POST" else _not_allowed()
        if path == "/v1/models":
            models = [{"id": name, "object": "model", "created": openai_format.CREATED, "owned_by": "sandbox"} for name in MODELS]
            return json_reply({"object": "list", "data": models}) if _has_key(request) else _no_key()
        return error_reply(404, f"There is nothing at {path[:200]}.", code="not_found")

    def _reset(self) -> Reply:
        self.counts = self._tools.counts = Counts()
        self._tools.reset()
        self._faults.reset()
        return json_reply(self.counts.document(brief=True))

    def _completion(self, request: Request) -> Script:
        self.counts.requests += 1
        number = next(self._numbers)
        if not _has_key(request):
            self.counts.refused += 1
            return script(_no_key())
        try:
            body = validate.parse(request.body)
            validate.check(body)
            index = last_user_index(body["messages"])
            text = text_of(body["messages"][index]["content"]) if index >= 0 else ""
            parsed = markers.parse(text)
            fault = self._fault(request, parsed, text)
        except validate.Refused as problem:
            return script(self._refuse(str(problem), problem.param, problem.code))
        except ValueError as problem:
            return script(self._refuse(str(problem), "messages", "sandbox_marker"))
        self.counts.count_request(text, body)
        identity = openai_format.ReplyIdentity(number, body["model"])
        latency_s = self._latency_s if parsed.latency_s is None else parsed.latency_s
        if fault is None:
            return self._complete(latency_s, self._reply(body, parsed, index, identity, None))
        return self._faulty(fault, latency_s, body, parsed, index, identity)

    def _fault(self, request: Request, parsed: markers.Markers, text: str) -> str | None:
        permanent = request.headers.get("x-sandbox-fault") or request.query.get("fault")
        if permanent:
            return self._faults.next_fault(("header", text), [parse_fault(permanent)], times=FOREVER)
        return self._faults.next_fault(("model", text), parsed.faults) if parsed.faults else None

    def _refuse(self, message: str, param: str | None, code: str | None) -> Reply:
        self.counts.refused += 1
        self.counts.bad_requests.append(message if param is None else f"{param}: {message}")
        return error_reply(400, message, param=param, code=code)

    def _reply(
        self, body: dict[str, Any], parsed: markers.Markers, index: int, identity: openai_format.ReplyIdentity, fault: str | None
    ) -> Reply:
        answer = self._model.answer(body, parsed, index)
        if fault is not None:
            answer = corrupt_answer(fault, answer)
        headers = (("x-request-id", f"req_{identity.number}"), ("openai-processing-ms", "1"))
        if not body.get("stream"):
            documents = [openai_format.completion(answer, identity)]
            if fault is not None:
                documents = corrupt_documents(fault, documents)
            return Reply(200, "".join(documents).encode(), headers=headers)
        include_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        documents = openai_format.chunks(answer, identity, include_usage=include_usage)
        pieces = openai_format.events(documents if fault is None else corrupt_documents(fault, documents))
        if fault == "truncated-json":
            pieces[-1] = pieces[-1].rstrip(b"\n")
        elif fault not in ("no-done", "error-mid-stream"):
            pieces.append(openai_format.DONE)
        return Reply(200, b"", EVENT_STREAM, headers, pieces, self._token_s if parsed.token_s is None else parsed.token_s)

    def _complete(self, latency_s: float, reply: Reply) -> Script:
        try:
            if latency_s:
                yield latency_s
            yield from script(reply)
        except GeneratorExit:
            self.counts.left += 1
            raise
        self.counts.completed += 1

    def _faulty(
        self, fault: str, latency_s: float, body: dict[str, Any], parsed: markers.Markers, index: int, identity: openai_format.ReplyIdentity
    ) -> Script:
        self.counts.faulted += 1
        if latency_s:
            yield latency_s
        if fault in bad_transport.AFTER_WORK:
            self.counts.completed += 1
        error = bad_transport.error_status(fault)
        if error is not None:
            yield from script(error)
            return
        reply = self._reply(body, parsed, index, identity, fault)
        yield from bad_transport.faulty_script(fault, reply, pace_s=self._pace_s)


def _has_key(request: Request) -> bool:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and bool(key.strip())


def _no_key() -> Reply:
    return error_reply(401, "The request has no API key. Send it as 'Authorization: Bearer KEY'.", code="invalid_api_key")


def _not_allowed() -> Reply:
    return error_reply(405, "This address does not support this method.", code="method_not_allowed")
