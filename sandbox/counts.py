"""What the sandbox was asked and what it did, for tests to compare with what we recorded."""

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
    """What arrived under one Idempotency-Key."""

    requests: int = 0
    effects: int = 0
    status_requests: int = 0

    def document(self) -> dict[str, int]:
        """Return the count as JSON; requests for a status only where there were any."""
        asked = {"status_requests": self.status_requests} if self.status_requests else {}
        return {"requests": self.requests, "effects": self.effects} | asked


@dataclass(slots=True)
class ToolCount(KeyCount):
    """What one tool was asked; an effect is a call carried out, whether or not the caller learned of it."""

    by_key: OrderedDict[str, KeyCount] = field(default_factory=OrderedDict)

    def key(self, key: str) -> KeyCount:
        """Return the count of `key`, forgetting the oldest key when there are too many."""
        found = self.by_key.get(key)
        if found is None:
            found = self.by_key[key] = KeyCount()
            if len(self.by_key) > MAX_KEYS:
                self.by_key.popitem(last=False)
        return found


@dataclass(slots=True)
class Counts:
    """All counts since the start or the last reset; bounded in memory.

    `left`: clients that went away before the end of a reply that nothing was wrong with. `latest`: the latest requests.
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

    def asked(self, text: str, request: dict[str, Any]) -> None:
        """Count one model request, whose last user message is `text`."""
        self.latest.append(request)
        key = text if len(text) <= MAX_TEXT_CHARS else shortened(text)
        self.by_text[key] = self.by_text.get(key, 0) + 1
        if len(self.by_text) > MAX_TEXTS:
            self.by_text.popitem(last=False)

    def tool(self, name: str) -> ToolCount:
        """Return the count of the tool `name`, forgetting the oldest tool when there are too many."""
        found = self.tools.get(name)
        if found is None:
            found = self.tools[name] = ToolCount()
            if len(self.tools) > MAX_TOOLS:
                self.tools.popitem(last=False)
        return found

    def document(self, *, context: bool) -> dict[str, Any]:
        """Return the counts as JSON; a brief one leaves out the maps by text and by key."""
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
            if not context:
                tools[name]["by_key"] = {key: of_key.document() for key, of_key in count.by_key.items()}
        document: dict[str, Any] = {"model": model, "tools": tools, "bad_requests": list(self.bad_requests)}
        return document if context else document | {"by_text": dict(self.by_text)}


def shortened(text: str) -> str:
    """Return a long text's beginning and a hash of all of it, so that it can be told from others."""
    return f"{text[:200]}…#{blake2b(text.encode(), digest_size=8).hexdigest()}"
