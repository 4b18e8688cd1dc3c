"""Flower in a real browser. If TURNLINE_PICTURES is set, screenshots are saved in that directory, for the docs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from celery import Celery

from cli.standalone.commands import basic_auth_header
from store.conversations import intake
from store.database import Database
from tasks.dispatcher import Dispatcher, task_id
from tests.support.browser import ABSENT, browsing, chromium
from tests.support.factories import tenant
from tests.support.servers import free_port
from tests.support.stack import FLOWER_AUTH, TOOL, Stack

pytestmark = pytest.mark.skipif(not chromium(), reason=ABSENT)


async def test_flower_pages_show_workers_tasks_and_queues_without_message_text(stack: Stack, database: Database, dispatcher: Dispatcher):
    port = free_port()
    stack.flower(port, "--url_prefix=ops/flower", prefix="/ops/flower")
    worker = stack.worker(queues="turns,messages,tools")
    name = worker.log.read_text().partition(" ready.")[0].rpartition('"')[2]
    integration = {"configuration": {"url": f"{stack.sandbox_url}/tools/orders_lookup"}}
    made = await tenant(database, sessions=3, tools=({**TOOL, "integration": integration, "configuration": {"approval": "never"}},))
    accepted = [await intake.accept(database, made.workspace_id, one, "Is order 41 paid? seen-canary") for one in made.session_ids]
    producer = Celery(broker=stack.broker_url)
    for _ in range(7):
        producer.send_task("usage.audit", queue="maintenance")
    message = {"session_id": str(made.session_id), "message_key": "k", "text": "seen-canary"}
    producer.send_task("messages.receive", kwargs=message, queue="messages")
    producer.close()
    for one in accepted:
        assert one.turn_id is not None
        dispatcher.dispatch(one.turn_id)
    stack.drained(60)
    first = accepted[0].turn_id
    assert first is not None
    url, seen = f"http://127.0.0.1:{port}/ops/flower", []

    async with browsing(basic_auth_header(FLOWER_AUTH)) as page:

        async def look(path: str, *words: str, picture: str = "") -> None:
            await page.open(url + path)
            seen.append(await page.says(*words))
            if picture and "TURNLINE_PICTURES" in os.environ:
                await page.picture(Path(os.environ["TURNLINE_PICTURES"]) / f"{picture}.png")

        await look("/workers", name, "Online", picture="flower-workers")
        await look(f"/worker/{name}", "Running", "Queued", "Loop lag ms", picture="flower-pool")
        await look("/tasks", "turns.advance", "messages.receive", "SUCCESS", picture="flower-tasks")
        await look(f"/task/{task_id(first, 0)}", str(first), "turns.advance", picture="flower-task")
        await look("/broker", "turns", "messages", "tools", "maintenance", "7", picture="flower-queues")

    assert "seen-canary" not in "".join(seen)
    assert page.complaints == []
