"""Counts of the requests and effects that the sandbox saw, for tests to compare with the database."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

MAX_TEXTS = 50_000
MAX_KEYS = 50_000
MAX_TOOLS = 1_000
MAX_TEXT_CHARS = 500
MAX_LATEST = 100


@dataclass(slots=True)
class KeyCount:
    """Counts for one Idempotency-Key."""

    requests: int = 0
    effects: int = 0
    status_requests: int = 0

    def document(self) -> dict[str, int]:
        """Return the counts as JSON; `status_requests` only if there were any."""
        status_requests = {"status_requests": self.status_requests} if self.status_requests else {}
        return {"requests": self.requests, "effects": self.effects} | status_requests


@dataclass(slots=True)
class ToolCount(KeyCount):
    """Counts for one tool. An effect is an executed call, whether or not its answer arrived."""

    by_key: OrderedDict[str, KeyCount] = field(default_factory=OrderedDict)

    def key(self, key: str) -> KeyCount:
        """Return the counts of `key`; drops the oldest key if there are too many."""
        found = self.by_key.get(key)
        if found is None:
            found = self.by_key[key] = KeyCount()
            if len(self.by_key) > MAX_KEYS:
                self.by_key.popitem(last=False)
        return found


@dataclass(slots=True)
class Counts:
    """All counts since the start or the last reset, in bounded memory.

    `left`: clients that disconnected before the end of a fault-free reply. `latest`: the latest model requests.
    """

    requests: int = 0
    completed: int = 0
    refused: int = 0
    faulted: int = 0
    left: int = 0
    by_text: OrderedDict[str, int] = field(default_factory=OrderedDict)
    tools: OrderedDict[str, ToolCount] = field(default_factory=OrderedDict)
    bad_requests: deque[str] = field(default_factory=lambda: deque(maxlen=20))
    latest: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=MAX_LATEST))

    def count_request(self, text: str, request: dict[str, Any]) -> None:
        """Count a model request whose last user message is `text`."""
        self.latest.append(request)
        key = text if len(text) <= MAX_TEXT_CHARS else shorten(text)
        self.by_text[key] = self.by_text.get(key, 0) + 1
        if len(self.by_text) > MAX_TEXTS:
            self.by_text.popitem(last=False)

    def tool(self, name: str) -> ToolCount:
        """Return the counts of the tool `name`; drops the oldest tool if there are too many."""
        found = self.tools.get(name)
        if found is None:
            found = self.tools[name] = ToolCount()
            if len(self.tools) > MAX_TOOLS:
                self.tools.popitem(last=False)
        return found

    def document(self, *, brief: bool) -> dict[str, Any]:
        """Return the counts as JSON. `brief` leaves out the counts by text and by key."""
        model = {
            "requests": self.requests,
            "completed": self.completed,
            "refused": self.refused,
            "faulted": self.faulted,
            "left": self.left,
        }
        tools: dict[str, dict[str, Any]] = {}
        for name, count in self.tools.items():
            tools[name] = dict(count.document())
            if not brief:
                tools[name]["by_key"] = {key: of_key.document() for key, of_key in count.by_key.items()}
        document: dict[str, Any] = {"model": model, "tools": tools, "bad_requests": list(self.bad_requests)}
        return document if brief else document | {"by_text": dict(self.by_text)}


def shorten(text: str) -> str:
    """Return the start of a long text and a hash of all of it, which keeps texts with the same start apart."""
    return f"{text[:200]}…#{blake2b(text.encode(), digest_size=8).hexdigest()}"
