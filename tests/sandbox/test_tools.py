"""The sandbox's tools: results, idempotency keys, faults and status queries."""

from __future__ import annotations

import pytest


def key(name: str) -> dict[str, str]:
    return {"Idempotency-Key": name}


async def test_tools_are_deterministic(call):
    assert (await call("orders_lookup", {"order": 41})).json() == {"order": 41, "paid": True, "total": "129.90", "currency": "EUR"}
    assert (await call("orders_lookup", query="?order=42")).json()["paid"] is False
    assert (await call("weather", {"city": "Paris"})).body == (await call("weather", query="?city=Paris")).body
    assert (await call("refund", {"order": 41, "amount": 12.5})).json()["amount"] == "12.50"
    assert (await call("echo", {"a": [1, {"b": None}]})).json() == {"a": [1, {"b": None}]}
    assert (await call("anything", {"x": 1})).json() == {"tool": "anything", "arguments": {"x": 1}}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("orders_lookup", {}), ("orders_lookup", {"order": "41"}), ("weather", {}), ("refund", {"order": 1}), ("echo", [1])],
)
async def test_invalid_arguments_are_refused_without_effect(call, sandbox, name, arguments):
    assert (await call(name, arguments)).status == 422
    assert sandbox.counts.tools[name].effects == 0


async def test_a_repeated_key_has_one_effect_and_the_same_reply(call, sandbox):
    first, second = [await call("refund", {"order": 41, "amount": 5}, headers=key("k1")) for _ in range(2)]
    await call("refund", {"order": 41, "amount": 5}, headers=key("k2"))
    await call("refund", {"order": 41, "amount": 5})
    assert first.body == second.body
    counts = sandbox.counts.document(brief=False)["tools"]["refund"]
    assert (counts["requests"], counts["effects"]) == (4, 3)
    assert counts["by_key"] == {"k1": {"requests": 2, "effects": 1}, "k2": {"requests": 1, "effects": 1}}
    assert (await call("refund", {"order": 41, "amount": 6}, headers=key("k1"))).status == 409


@pytest.mark.parametrize(
    ("fault", "status", "end", "effects"),
    [
        ("500", 500, "complete", 0),
        ("429-retry-after", 429, "complete", 0),
        ("redirect-metadata", 302, "complete", 0),
        ("hang", 0, "silent", 0),
        ("reset", 0, "reset", 0),
        ("execute-then-drop", 0, "reset", 1),
        ("effect-then-500", 500, "complete", 1),
        ("effect-then-timeout", 0, "silent", 1),
        ("reset-mid-body", 200, "reset", 1),
        ("hang-mid-body", 200, "silent", 1),
        ("html", 200, "complete", 1),
        ("wrong-schema", 200, "complete", 1),
        ("truncated-json", 200, "complete", 1),
    ],
)
async def test_faults_end_per_key_and_effects_are_counted_once(call, sandbox, fault, status, end, effects):
    arguments = {"order": 1, "amount": 2, "fault": f"{fault} x2"}
    for _ in range(2):
        received = await call("refund", arguments, headers=key("k"), silent=end == "silent")
        assert (received.status, received.end) == (status, end)
    assert sandbox.counts.tools["refund"].effects == effects
    next_reply = await call("refund", arguments, headers=key("k"))
    assert next_reply.json() == {"refunded": True, "order": 1, "amount": "2.00", "currency": "EUR"}
    assert sandbox.counts.tools["refund"].effects == 1
    assert (await call("refund", arguments, headers=key("other"), silent=end == "silent")).status == status


async def test_a_fault_in_the_url_is_permanent_by_default(call):
    assert [(await call("echo", {"a": 1}, query="?fault=503")).status for _ in range(3)] == [503] * 3
    assert [(await call("echo", {"a": 1}, query="?fault=503%20x1", headers=key("k"))).status for _ in range(2)] == [503, 200]
    assert [(await call("echo", {"a": 1, "fault": "500"})).status for _ in range(2)] == [500, 200]


@pytest.mark.parametrize("fault", ["deep", "huge-int", "nan", "nul", "oversized", "gzip-bomb", "slow-body", "slow-headers", "wrong-length"])
async def test_content_and_size_faults_apply_to_tools(call, fault):
    plain = await call("echo", {"a": 1})
    received = await call("echo", {"a": 1}, query=f"?fault={fault}")
    assert received.status == 200
    assert received.body != plain.body or received.end != plain.end or fault.startswith("slow-")


async def test_tool_latency_argument(call):
    assert (await call("echo", {"a": 1, "latency_ms": 20})).json() == {"a": 1}
    assert (await call("echo", query="?a=1&latency_ms=600000", silent=True)).end == "silent"
    assert (await call("echo", query="?latency_ms=soon")).status == 422


async def test_status_reports_whether_a_key_was_executed(call, fetch, sandbox):
    assert (await fetch("GET", "/tools/refund/status?key=k")).status == 404
    assert (await fetch("GET", "/tools/refund/status?key=k&absent=200")).json() == {"done": False}
    assert (await fetch("GET", "/tools/refund/status")).status == 422
    done = await call("refund", {"order": 41, "amount": 5, "fault": "effect-then-500"}, headers=key("k"))
    assert done.status == 500

    status = await fetch("GET", "/tools/refund/status?key=k")
    assert (status.status, status.json()["done"], status.json()["result"]["amount"]) == (200, True, "5.00")
    assert (await fetch("POST", "/tools/refund/status", headers=key("k"))).body == status.body
    assert (await fetch("GET", "/tools/weather/status?key=k")).status == 404
    counts = sandbox.counts.document(brief=False)["tools"]["refund"]
    assert counts["by_key"] == {"k": {"requests": 1, "effects": 1, "status_requests": 4}}
    assert (counts["requests"], counts["status_requests"]) == (1, 4)

    await fetch("POST", "/_sandbox/reset")
    assert (await fetch("GET", "/tools/refund/status?key=k")).status == 404


async def test_status_queries_have_their_own_faults(call, fetch):
    arguments = {"order": 41, "status_fault": "500 x2"}
    assert (await call("orders_lookup", arguments, headers=key("k"))).status == 200
    assert [(await fetch("GET", "/tools/orders_lookup/status?key=k")).status for _ in range(3)] == [500, 500, 200]
    assert [(await fetch("GET", "/tools/orders_lookup/status?key=k&fault=503")).status for _ in range(2)] == [503, 503]
    assert (await fetch("GET", "/tools/orders_lookup/status?key=k&fault=reset")).end == "reset"
    assert (await fetch("GET", "/tools/orders_lookup/status?key=k&fault=nonsense")).status == 422


async def test_repeats_argument_repeats_the_effect(call, sandbox):
    for _ in range(2):
        await call("refund", {"order": 41, "amount": 5, "repeats": True}, headers=key("k"))
    assert sandbox.counts.tools["refund"].effects == sandbox.counts.tools["refund"].by_key["k"].effects == 2
