"""A customer's message at the front door."""

from __future__ import annotations

import asyncio

import psycopg
import redis

from tests.servers import until


async def test_a_message_is_accepted_and_its_turn_is_rung(tenant, broker_url):
    session = await tenant.session(variables={"tier": "gold"})

    response = await tenant.http.post(f"/v1/sessions/{session['id']}/messages", json={"text": "Hello", "metadata": {"page": "/cart"}})

    assert response.status_code == 202
    answer = response.json()
    assert answer["event"] | {"id": "", "created_at": "", "turn_id": ""} == {
        "id": "",
        "session_id": session["id"],
        "offset": 0,
        "kind": "customer_message",
        "source": "customer",
        "content": {"text": "Hello"},
        "metadata": {"page": "/cart"},
        "turn_id": "",
        "created_at": "",
    }
    assert answer["turn"] == {"id": answer["event"]["turn_id"], "status": "queued"}
    assert response.headers["location"] == f"/v1/turns/{answer['turn']['id']}"
    assert "idempotent-replayed" not in response.headers
    with redis.Redis.from_url(broker_url) as broker:
        await asyncio.to_thread(until, lambda: broker.llen("turns") == 1)
        assert answer["turn"]["id"].encode() in broker.lindex("turns", 0)
        assert b"Hello" not in broker.lindex("turns", 0)
