"""Every fault of the sandbox as a client sees it."""

from __future__ import annotations

import asyncio
import json
import zlib
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import pytest

from sandbox.faults import FAULTS

ERROR_STATUSES = {
    "429": (429, None),
    "429-retry-after": (429, "1"),
    "429-retry-after-long": (429, "86400"),
    "429-retry-garbage": (429, "soon"),
    "500": (500, None),
    "502": (502, None),
    "503": (503, None),
    "529": (529, None),
    "401": (401, None),
    "403": (403, None),
    "400-context": (400, None),
    "redirect-metadata": (302, None),
    "effect-then-500": (500, None),
}
SILENT = ("hang", "hang-mid-body", "effect-then-timeout")
MODES = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


def fails_to_load(text: str) -> bool:
    try:
        json.loads(text, parse_constant=lambda name: int(name))
    except (ValueError, RecursionError):
        return True
    return False


@MODES
@pytest.mark.parametrize("fault", sorted(FAULTS))
async def test_every_fault_happens_once_by_default(ask, sandbox, fault, stream):
    """The reply after the faulty one is complete and correct."""
    text = f"Hello [[fault {fault}]]"
    usage = {"stream_options": {"include_usage": True}} if stream else {}
    faulty = await ask(text, stream=stream, silent=fault in SILENT, **usage)
    next_reply = await ask(text, stream=stream, **usage)
    plain = await ask("Hello", stream=stream, **usage)
    assert (next_reply.status, next_reply.end) == (200, "complete")
    assert faulty.body != next_reply.body or faulty.end != "complete" or fault in ("slow-body", "slow-headers", "out-of-order")
    assert (next_reply.content() == plain.content()) if stream else (next_reply.json()["choices"] == plain.json()["choices"])
    executed = fault in ("execute-then-drop", "effect-then-500", "effect-then-timeout")
    assert (sandbox.counts.requests, sandbox.counts.faulted, sandbox.counts.completed) == (3, 1, 2 + executed)


@MODES
@pytest.mark.parametrize("fault", sorted(ERROR_STATUSES))
async def test_error_statuses(ask, fault, stream):
    received = await ask("hi", query=f"?fault={fault}", stream=stream)
    assert (received.status, received.headers.get("retry-after"), received.end) == (*ERROR_STATUSES[fault], "complete")
    if fault not in ("502", "redirect-metadata"):
        assert {"message", "type", "param", "code"} == set(received.json()["error"])
    if fault == "redirect-metadata":
        assert received.headers["location"] == "http://169.254.169.254/"


async def test_retry_after_date_is_valid(ask):
    received = await ask("hi", headers={"X-Sandbox-Fault": "429-retry-date"})
    assert parsedate_to_datetime(received.headers["retry-after"]).tzinfo is not None


@MODES
@pytest.mark.parametrize(
    ("fault", "end", "status"),
    [
        ("hang", "silent", 0),
        ("effect-then-timeout", "silent", 0),
        ("hang-mid-body", "silent", 200),
        ("reset", "reset", 0),
        ("execute-then-drop", "reset", 0),
        ("reset-mid-body", "reset", 200),
        ("wrong-length", "closed", 200),
    ],
)
async def test_incomplete_replies(ask, fault, end, status, stream):
    received = await ask("Hello there, how are you?", query=f"?fault={fault}", stream=stream, silent=end == "silent")
    assert (received.end, received.status) == (end, status)
    assert bool(received.body) == (status == 200)


@MODES
async def test_slow_replies_arrive_completely(ask, stream):
    plain = await ask("hi", stream=stream)
    body = await ask("hi", query="?fault=slow-body", stream=stream)
    headers = await ask("hi", query="?fault=slow-headers", stream=stream)
    assert len(headers.headers) > 60
    for received in (body, headers):
        assert received.end == "complete"
        assert len(received.body) == len(plain.body)


@pytest.mark.parametrize("fault", ["slow-body", "slow-headers"])
async def test_slow_replies_arrive_in_small_pieces(sandbox, fault):
    reader, writer = await asyncio.open_connection("127.0.0.1", sandbox.port)
    writer.write(f"GET /tools/echo?a=1&fault={fault} HTTP/1.1\r\n\r\n".encode())
    reads = 0
    while not (await reader.read(65536)).endswith(b"}"):
        reads += 1
    assert reads > 5
    writer.close()


@MODES
async def test_invalid_bodies(ask, stream):
    html = await ask("hi", query="?fault=html", stream=stream)
    assert html.headers["content-type"].startswith("text/html")
    assert b"<html>" in html.body
    charset = await ask("hi", query="?fault=wrong-charset", stream=stream)
    assert charset.body[:2] in (b"\xff\xfe", b"\xfe\xff")
    cut = await ask("Hello there", query="?fault=truncated-json", stream=stream)
    assert cut.end == "complete"
    assert fails_to_load(cut.events()[-1] if stream else cut.body.decode())


@MODES
@pytest.mark.parametrize("fault", ["deep", "huge-int", "nan"])
async def test_json_that_strict_parsers_reject(ask, fault, stream):
    received = await ask("hi", query=f"?fault={fault}", stream=stream)
    assert all(fails_to_load(text) for text in (received.events()[:-1] if stream else [received.body.decode()]))


@MODES
async def test_valid_json_with_wrong_content(ask, stream):
    async def documents_of(fault: str, text: str = "Hello there") -> list[dict[str, Any]]:
        received = await ask(
            text, query=f"?fault={fault}", stream=stream, **({"stream_options": {"include_usage": True}} if stream else {})
        )
        assert (received.status, received.end) == (200, "complete")
        return received.chunks() if stream else [received.json()]

    assert not any("choices" in document for document in await documents_of("wrong-schema"))
    for document in await documents_of("null-content"):
        for choice in document["choices"]:
            assert not choice.get("message", choice.get("delta")).get("content")
    assert "ran_out_of_ideas" in [
        choice["finish_reason"] for document in await documents_of("unknown-finish") for choice in document["choices"]
    ]
    assert (await documents_of("negative-usage"))[-1]["usage"]["prompt_tokens"] < 0
    assert not any(document.get("usage") for document in await documents_of("no-usage"))
    nul = "".join(
        choice.get("message", choice.get("delta")).get("content") or ""
        for document in await documents_of("nul")
        for choice in document["choices"]
    )
    assert "\x00" in nul
    assert "\ud800" in nul


async def test_stream_faults(ask):
    text = "one two three four five six"
    plain = await ask(f"[[say {text}]]", stream=True)
    assert plain.content() == text
    no_done = await ask(f"[[say {text}]]", query="?fault=no-done", stream=True)
    assert no_done.events()[-1] != "[DONE]"
    assert no_done.content() == text
    twice = await ask(f"[[say {text}]]", query="?fault=duplicate-chunk", stream=True)
    assert len(twice.events()) == len(plain.events()) + 1
    mixed = await ask(f"[[say {text}]]", query="?fault=out-of-order", stream=True)
    assert mixed.content() != text
    assert sorted(mixed.content().split()) == sorted(text.split())
    broken = await ask(f"[[say {text}]]", query="?fault=error-mid-stream", stream=True)
    assert "error" in json.loads(broken.events()[-1])
    assert len(broken.events()) > 2


@MODES
async def test_an_oversized_body_is_ten_megabytes_of_valid_json(ask, stream):
    received = await ask("hi", query="?fault=oversized", stream=stream)
    assert "content-length" not in received.headers
    assert len(received.body) > 10_000_000
    assert len(received.content() if stream else received.json()["choices"][0]["message"]["content"]) >= 10_000_000


async def test_a_gzip_bomb_is_small_when_compressed(ask):
    received = await ask("hi", query="?fault=gzip-bomb")
    assert received.headers["content-encoding"] == "gzip"
    assert len(received.body) < 200_000
    assert len(zlib.decompress(received.body, 31)) > 64_000_000


async def test_faults_last_for_the_requested_number_of_requests(ask):
    text = "[[fault 429 x2]] [[fault 500 x1 after 1]] hello"
    assert [(await ask(text)).status for _ in range(5)] == [429, 429, 200, 500, 200]
    assert [(await ask("[[fault 503 x*]]")).status for _ in range(4)] == [503] * 4
    assert [(await ask(f"[[fault 500]] {n}")).status for n in range(2)] == [500, 500]


async def test_an_unknown_fault_is_refused(ask, call):
    assert (await ask("hi", query="?fault=nope")).status == 400
    assert (await call("echo", {"fault": "nope"})).status == 422


async def test_a_hanging_reply_ends_when_the_client_disconnects(sandbox, ask):
    await ask("hi", query="?fault=hang", silent=True)
    await ask("[[latency 600000]]", silent=True)
    async with asyncio.timeout(5):
        while sandbox._connections:
            await asyncio.sleep(0.01)
    assert sandbox.counts.completed == 0


async def test_httpx_sees_replies_and_faults_on_kept_connections(sandbox):
    async with httpx.AsyncClient(base_url=sandbox.url, trust_env=False, headers={"authorization": "Bearer key"}) as client:
        body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "[[words 500]]"}], "stream": True}
        for _ in range(3):
            reply = await client.post("/v1/chat/completions", json=body)
            assert reply.text.endswith("data: [DONE]\n\n")
        with pytest.raises(httpx.ReadError):
            await client.post("/v1/chat/completions?fault=reset", json=body)
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post("/v1/chat/completions?fault=wrong-length", json=body)
        with pytest.raises(httpx.ReadError):
            await client.post("/v1/chat/completions?fault=reset-mid-body", json=body)
