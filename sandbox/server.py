"""The server: which address is answered by what."""

from __future__ import annotations

import asyncio
import itertools
from collections import OrderedDict
from typing import Any, Self

from sandbox import bad_transport, markers, page, validate, wire
from sandbox.bad_documents import spoil_answer, spoil_documents
from sandbox.connection import Connection, Request
from sandbox.counts import Counts
from sandbox.faults import FOR_EVER, FaultBook, read_wish
from sandbox.replies import EVENT_STREAM, Reply, Script, error_reply, json_reply, script
from sandbox.tools import ToolServer
from sandbox.vendor import Vendor, last_user, text_of

MODELS = ("gpt-4.1", "gpt-4.1-mini", "gpt-4o", "gpt-4o-mini", "gpt-5", "gpt-5-mini", "o4-mini")


class Sandbox:
    """The vendor and the tool server on one port. `async with Sandbox(port=0) as sandbox` serves until the block ends.

    `pace_s` is the time between two bytes, or two headers, of a slow reply.
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
        self._faults = FaultBook()
        self._vendor = Vendor()
        self._tools = ToolServer(self.counts, self._faults, tool_latency_s, pace_s, OrderedDict())
        self._numbers = itertools.count(1)
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """Return the address without a path; the vendor's base address is this and `/v1`."""
        return f"http://{self.host}:{self.port}"

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self.answer, self._connections), self.host, self.port, backlog=4096)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop at once; whoever still waits is dropped."""
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
            return Reply(200, page.text().encode(), "text/plain; charset=utf-8")
        if path == "/_sandbox/counts":
            return json_reply(self.counts.document(context=request.query.get("brief", "0") not in ("", "0")))
        if path == "/_sandbox/asked":
            latest = list(self.counts.latest)
            rest = [{name: value for name, value in one.items() if name != "messages"} for one in latest]
            return json_reply({"asked": [one["messages"] for one in latest], "with": rest})
        if path == "/_sandbox/reset":
            return self._reset() if request.method == "POST" else _not_allowed()
        if path == "/v1/models":
            models = [{"id": name, "object": "model", "created": wire.CREATED, "owned_by": "sandbox"} for name in MODELS]
            return json_reply({"object": "list", "data": models}) if _has_key(request) else _no_key()
        return error_reply(404, f"There is nothing at {path[:200]}.", code="not_found")

    def _reset(self) -> Reply:
        self.counts = self._tools.counts = Counts()
        self._tools.forget()
        self._faults.forget()
        return json_reply(self.counts.document(context=True))

    def _completion(self, request: Request) -> Script:
        self.counts.requests += 1
        number = next(self._numbers)
        if not _has_key(request):
            self.counts.refused += 1
            return script(_no_key())
        try:
            asked = validate.parse(request.body)
            validate.check(asked)
            place = last_user(asked["messages"])
            text = text_of(asked["messages"][place]["content"]) if place >= 0 else ""
            marks = markers.read(text)
            fault = self._fault(request, marks, text)
        except validate.Refused as problem:
            return script(self._refuse(str(problem), problem.param, problem.code))
        except ValueError as problem:
            return script(self._refuse(str(problem), "messages", "sandbox_marker"))
        self.counts.asked(text, asked)
        stamp = wire.Stamp(number, asked["model"])
        latency_s = self._latency_s if marks.latency_s is None else marks.latency_s
        if fault is None:
            return self._whole(latency_s, self._reply(asked, marks, place, stamp, None))
        return self._spoilt(fault, latency_s, asked, marks, place, stamp)

    def _fault(self, request: Request, marks: markers.Marks, text: str) -> str | None:
        standing = request.headers.get("x-sandbox-fault") or request.query.get("fault")
        if standing:
            return self._faults.next(("header", text), [read_wish(standing)], times=FOR_EVER)
        return self._faults.next(("model", text), marks.faults) if marks.faults else None

    def _refuse(self, message: str, param: str | None, code: str | None) -> Reply:
        self.counts.refused += 1
        self.counts.bad_requests.append(message if param is None else f"{param}: {message}")
        return error_reply(400, message, param=param, code=code)

    def _reply(self, asked: dict[str, Any], marks: markers.Marks, place: int, stamp: wire.Stamp, fault: str | None) -> Reply:
        answer = self._vendor.answer(asked, marks, place)
        if fault is not None:
            answer = spoil_answer(fault, answer)
        headers = (("x-request-id", f"req_{stamp.number}"), ("openai-processing-ms", "1"))
        if not asked.get("stream"):
            documents = [wire.completion(answer, stamp)]
            if fault is not None:
                documents = spoil_documents(fault, documents)
            return Reply(200, "".join(documents).encode(), headers=headers)
        include_usage = bool((asked.get("stream_options") or {}).get("include_usage"))
        documents = wire.chunks(answer, stamp, include_usage=include_usage)
        pieces = wire.events(documents if fault is None else spoil_documents(fault, documents))
        if fault == "truncated-json":
            pieces[-1] = pieces[-1].rstrip(b"\n")
        elif fault not in ("no-done", "error-mid-stream"):
            pieces.append(wire.DONE)
        return Reply(200, b"", EVENT_STREAM, headers, pieces, self._token_s if marks.token_s is None else marks.token_s)

    def _whole(self, latency_s: float, reply: Reply) -> Script:
        try:
            if latency_s:
                yield latency_s
            yield from script(reply)
        except GeneratorExit:
            self.counts.left += 1
            raise
        self.counts.completed += 1

    def _spoilt(self, fault: str, latency_s: float, asked: dict[str, Any], marks: markers.Marks, place: int, stamp: wire.Stamp) -> Script:
        self.counts.faulted += 1
        if latency_s:
            yield latency_s
        if fault in bad_transport.AFTER_WORK:
            self.counts.completed += 1
        refused = bad_transport.refusal(fault)
        if refused is not None:
            yield from script(refused)
            return
        reply = self._reply(asked, marks, place, stamp, fault)
        yield from bad_transport.broken(fault, reply, pace_s=self._pace_s)


def _has_key(request: Request) -> bool:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and bool(key.strip())


def _no_key() -> Reply:
    return error_reply(401, "The request carries no API key. Send it as 'Authorization: Bearer KEY'.", code="invalid_api_key")


def _not_allowed() -> Reply:
    return error_reply(405, "This address is not for that method.", code="method_not_allowed")
