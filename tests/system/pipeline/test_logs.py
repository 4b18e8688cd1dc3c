"""Every process logs one JSON object per line, with ids, and never the text of a customer, a model or a tool, whatever fails."""

from __future__ import annotations

import json

import httpx
import redis
from celery import Celery

from store.catalog import workspaces
from store.database import Database
from tests.support.servers import free_port, until
from tests.support.stack import TOOL, Stack, answers

CANARY = "log-canary-7c1e"
FAULTS = ("", "[[fault 400-context x*]]", "[[fault 500 x*]]", "[[bad-arguments orders_lookup]]", "[[unknown-tool]]", f"[[say {CANARY}]]")


async def test_every_process_logs_json_without_message_text(stack: Stack, database: Database):
    stack.env |= {"TURNLINE_TURN_MAX_ATTEMPTS": "1", "TURNLINE_API_PORT": str(port := free_port())}
    processes = {"worker": stack.worker(), "beat": stack.beat()}
    processes |= {"api": stack.start("-m", "cli.main", "api"), "flower": stack.flower(free_port())}
    until(lambda: answers(f"http://127.0.0.1:{port}/healthz"), 30)
    made = await workspaces.create(database, "Logs")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}/v1", headers={"Authorization": f"Bearer {made.api_key}"}, trust_env=False) as api:
        tool = api.post("/tools", json=TOOL | {"effect": "pure"}).raise_for_status().json()
        connected = {"integration_type": "custom_tool", "configuration": {"url": f"{stack.sandbox_url}/tools/orders_lookup?{CANARY}"}}
        api.post(f"/tools/{tool['id']}/integrations", json=connected).raise_for_status()
        persona = {"name": "Ada", "model_name": "gpt-4o", "system_prompt": CANARY, "tool_ids": [tool["id"]]}
        agent = api.post("/agents", json=persona).raise_for_status().json()
        sessions = [api.post("/sessions", json={"agent_id": agent["id"]}).raise_for_status().json()["id"] for _ in FAULTS]
        for session_id, fault in zip(sessions, FAULTS, strict=True):
            api.post(f"/sessions/{session_id}/messages", json={"text": f"Is order 41 paid? {CANARY} {fault}"}).raise_for_status()
        assert api.post(f"/sessions/{sessions[0]}/messages", json={"text": CANARY, "nonsense": CANARY}).status_code == 422
        assert api.post(f"/sessions/{sessions[0]}/messages", content=f'{{"text": "{CANARY}"').status_code in (400, 415)
    producer = Celery(broker=stack.broker_url)
    for wrong in ({"session_id": CANARY}, {"session_id": sessions[0], "text": {"no": CANARY}}, {"nonsense": CANARY}):
        producer.send_task("messages.receive", kwargs={"message_key": "k", "text": CANARY} | wrong, queue="messages")
    producer.send_task(f"tests.{CANARY}", args=(CANARY,), queue="turns")
    producer.close()
    with redis.Redis.from_url(stack.broker_url) as broker:
        broker.lpush("messages", f'{{"body": "{CANARY}"}}')
        until(lambda: not broker.llen("messages") and not broker.llen("turns"), 30)
    stack.drained(60)
    for process in processes.values():
        process.stop()

    for name, process in processes.items():
        text = process.log.read_text()
        assert CANARY not in text, name
        lines = [json.loads(line) for line in text.splitlines() if name == "api" or line.startswith("{")]  # Celery prints a banner
        assert all({"level", "logger", "at", "event"} <= set(line) for line in lines), name
        if name == "worker":
            assert sessions[0] in {line.get("session_id") for line in lines}
