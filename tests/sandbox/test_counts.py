"""Counts of requests and effects, over HTTP and in memory."""

from __future__ import annotations

import asyncio

from sandbox import counts
from sandbox.counts import Counts


async def test_counts_are_read_and_reset_over_http(ask, call, fetch):
    await ask("Hello")
    await ask("Hello")
    await ask([])
    await ask("[[fault 500]]")
    await call("echo", {"a": 1}, headers={"Idempotency-Key": "k"})
    seen = (await fetch("GET", "/_sandbox/counts")).json()
    assert seen["model"] == {"requests": 4, "completed": 2, "refused": 1, "faulted": 1, "left": 0}
    assert seen["by_text"] == {"Hello": 2, "[[fault 500]]": 1}
    assert seen["tools"] == {"echo": {"requests": 1, "effects": 1, "by_key": {"k": {"requests": 1, "effects": 1}}}}
    assert len(seen["bad_requests"]) == 1
    brief = (await fetch("GET", "/_sandbox/counts?brief=1")).json()
    assert "by_text" not in brief
    assert brief["tools"] == {"echo": {"requests": 1, "effects": 1}}

    assert (await fetch("GET", "/_sandbox/reset")).status == 405
    assert (await fetch("POST", "/_sandbox/reset")).status == 200
    await call("echo", {"a": 1}, headers={"Idempotency-Key": "k"})
    seen = (await fetch("GET", "/_sandbox/counts")).json()
    assert seen["model"]["requests"] == 0
    assert seen["tools"]["echo"]["effects"] == 1
    assert (await ask("[[fault 500]]")).status == 500


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(counts, "MAX_TEXTS", 10)
    monkeypatch.setattr(counts, "MAX_KEYS", 10)
    monkeypatch.setattr(counts, "MAX_TOOLS", 10)
    stored = Counts()
    for number in range(50):
        stored.count_request(f"text {number}", {})
        stored.tool("echo").key(f"key {number}")
        stored.bad_requests.append("reason")
    for number in range(50):
        stored.tool(f"tool {number}")
    assert list(stored.by_text) == [f"text {number}" for number in range(40, 50)]
    assert len(stored.tools) == 10
    assert len(stored.bad_requests) == 20


def test_long_texts_with_equal_start_are_counted_separately():
    stored = Counts()
    stored.count_request("x" * 5000 + "a", {})
    stored.count_request("x" * 5000 + "b", {})
    assert len(stored.by_text) == 2
    assert all(len(text) < 500 for text in stored.by_text)


async def test_early_disconnects_are_counted_and_requests_listed(ask, fetch):
    await ask("[[latency 5000]] early", silent=True)
    await ask("[[words 100]] [[token-ms 100]] late", stream=True, silent=True)
    await ask("[[fault hang]] hung", silent=True)
    await ask("stayed")

    async def left() -> int:
        return int((await fetch("GET", "/_sandbox/counts")).json()["model"]["left"])

    while await left() < 2:
        await asyncio.sleep(0.01)
    assert await left() == 2, "a client that disconnects from a hanging fault is not counted"
    document = (await fetch("GET", "/_sandbox/asked")).json()
    requests = document["asked"]
    assert all("model" in fields and "messages" not in fields for fields in document["with"])
    assert [messages[-1]["content"].split()[-1] for messages in requests] == ["early", "late", "hung", "stayed"]
