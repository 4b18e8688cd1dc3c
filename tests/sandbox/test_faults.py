from __future__ import annotations

import asyncio
import json
import zlib
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import pytest

from sandbox.faults import FAULTS

REFUSALS = {
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
async def test_every_fault_happens_once_and_heals(ask, sandbox, fault, stream):
    """The reply that follows the faulty one is whole, whatever the fault was."""
    text = f"Hello [[fault {fault}]]"
    usage = {"stream_options": {"include_usage": True}} if stream else {}
    spoilt = await ask(text, stream=stream, silent=fault in SILENT, **usage)
    healed = await ask(text, stream=stream, **usage)
    plain = await ask("Hello", stream=stream, **usage)
    assert (healed.status, healed.end) == (200, "complete")
    assert spoilt.body != healed.body or spoilt.end != "complete" or fault in ("slow-body", "slow-headers", "out-of-order")
    assert (healed.content() == plain.content()) if stream else (healed.json()["choices"] == plain.json()["choices"])
    done_anyway = fault in ("execute-then-drop", "effect-then-500", "effect-then-timeout")
    assert (sandbox.counts.requests, sandbox.counts.faulted, sandbox.counts.completed) == (3, 1, 2 + done_anyway)


@MODES
@pytest.mark.parametrize("fault", sorted(REFUSALS))
async def test_refusals(ask, fault, stream):
    heard = await ask("hi", query=f"?fault={fault}", stream=stream)
    assert (heard.status, heard.headers.get("retry-after"), heard.end) == (*REFUSALS[fault], "complete")
    if fault not in ("502", "redirect-metadata"):
        assert {"message", "type", "param", "code"} == set(heard.json()["error"])
    if fault == "redirect-metadata":
        assert heard.headers["location"] == "http://169.254.169.254/"


async def test_a_date_to_retry_at_lies_ahead(ask):
    heard = await ask("hi", headers={"X-Sandbox-Fault": "429-retry-date"})
    assert parsedate_to_datetime(heard.headers["retry-after"]).tzinfo is not None


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
async def test_replies_that_never_end(ask, fault, end, status, stream):
    heard = await ask("Hello there, how are you?", query=f"?fault={fault}", stream=stream, silent=end == "silent")
    assert (heard.end, heard.status) == (end, status)
    assert bool(heard.body) == (status == 200)


@MODES
async def test_a_slow_body_and_slow_headers_arrive_whole_in_the_end(ask, stream):
    plain = await ask("hi", stream=stream)
    body = await ask("hi", query="?fault=slow-body", stream=stream)
    headers = await ask("hi", query="?fault=slow-headers", stream=stream)
    assert len(headers.headers) > 60
    for heard in (body, headers):
        assert heard.end == "complete"
        assert len(heard.body) == len(plain.body)


@pytest.mark.parametrize("fault", ["slow-body", "slow-headers"])
async def test_a_slow_reply_comes_in_small_pieces(sandbox, fault):
    reader, writer = await asyncio.open_connection("127.0.0.1", sandbox.port)
    writer.write(f"GET /tools/echo?a=1&fault={fault} HTTP/1.1\r\n\r\n".encode())
    reads = 0
    while not (await reader.read(65536)).endswith(b"}"):
        reads += 1
    assert reads > 5
    writer.close()


@MODES
async def test_bodies_that_are_no_reply(ask, stream):
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
async def test_json_that_cannot_be_loaded_strictly(ask, fault, stream):
    heard = await ask("hi", query=f"?fault={fault}", stream=stream)
    assert all(fails_to_load(text) for text in (heard.events()[:-1] if stream else [heard.body.decode()]))


@MODES
async def test_replies_that_mean_something_else(ask, stream):
    async def said(fault: str, text: str = "Hello there") -> list[dict[str, Any]]:
        heard = await ask(text, query=f"?fault={fault}", stream=stream, **({"stream_options": {"include_usage": True}} if stream else {}))
        assert (heard.status, heard.end) == (200, "complete")
        return heard.chunks() if stream else [heard.json()]

    assert not any("choices" in document for document in await said("wrong-schema"))
    for document in await said("null-content"):
        for choice in document["choices"]:
            assert not choice.get("message", choice.get("delta")).get("content")
    assert "ran_out_of_ideas" in [choice["finish_reason"] for document in await said("unknown-finish") for choice in document["choices"]]
    assert (await said("negative-usage"))[-1]["usage"]["prompt_tokens"] < 0
    assert not any(document.get("usage") for document in await said("no-usage"))
    nul = "".join(
        choice.get("message", choice.get("delta")).get("content") or "" for document in await said("nul") for choice in document["choices"]
    )
    assert "\x00" in nul
    assert "\ud800" in nul


async def test_faults_of_streams(ask):
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
async def test_an_oversized_body_is_ten_megabytes_of_good_json(ask, stream):
    heard = await ask("hi", query="?fault=oversized", stream=stream)
    assert "content-length" not in heard.headers
    assert len(heard.body) > 10_000_000
    assert len(heard.content() if stream else heard.json()["choices"][0]["message"]["content"]) >= 10_000_000


async def test_a_gzip_bomb_is_small_on_the_wire(ask):
    heard = await ask("hi", query="?fault=gzip-bomb")
    assert heard.headers["content-encoding"] == "gzip"
    assert len(heard.body) < 200_000
    assert len(zlib.decompress(heard.body, 31)) > 64_000_000


async def test_faults_last_as_long_as_asked_and_take_turns(ask):
    text = "[[fault 429 x2]] [[fault 500 x1 after 1]] hello"
    assert [(await ask(text)).status for _ in range(5)] == [429, 429, 200, 500, 200]
    assert [(await ask("[[fault 503 x*]]")).status for _ in range(4)] == [503] * 4
    assert [(await ask(f"[[fault 500]] {n}")).status for n in range(2)] == [500, 500]


async def test_an_unknown_fault_is_refused(ask, call):
    assert (await ask("hi", query="?fault=nope")).status == 400
    assert (await call("echo", {"fault": "nope"})).status == 422


async def test_a_hanging_reply_ends_when_the_client_leaves(sandbox, ask):
    await ask("hi", query="?fault=hang", silent=True)
    await ask("[[latency 600000]]", silent=True)
    async with asyncio.timeout(5):
        while sandbox._connections:
            await asyncio.sleep(0.01)
    assert sandbox.counts.completed == 0


async def test_a_kept_client_reads_replies_and_sees_the_faults(sandbox):
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
