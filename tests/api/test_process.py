"""The API's process: its startup, its settings and its shutdown."""

from __future__ import annotations

import asyncio
import signal
import time

import httpx
import pytest

from store.catalog import workspaces
from store.database import Database
from tests.support.api_process import Served, served
from tests.support.factories import tenant as made_tenant


async def _tenant(database_url):
    database = Database(database_url, pool_size=2)
    await database.open()
    try:
        made = await made_tenant(database)
        key = await workspaces.create_api_key(database, made.workspace_id)
        return str(made.session_id), {"Authorization": f"Bearer {key.text}"}
    finally:
        await database.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_shutdown_ends_streams_and_long_polls_at_once(number, database_url, broker_url, tmp_path):
    session_id, headers = await _tenant(database_url)
    with served(tmp_path / "log", database_url, broker_url) as process:
        async with httpx.AsyncClient(base_url=process.url, headers=headers, trust_env=False, timeout=60) as http:
            polled = asyncio.create_task(http.get(f"/v1/sessions/{session_id}/events?wait=60"))
            async with http.stream("GET", f"/v1/sessions/{session_id}/stream") as stream:
                chunks = stream.aiter_raw()
                assert b"retry" in await anext(chunks)
                code = await asyncio.to_thread(process.stop, number)
                rest = [chunk async for chunk in chunks]
            poll = await polled

    assert code in (0, -number), process.log.read_text()
    assert "timeout graceful shutdown exceeded" not in process.log.read_text(), "the server waited for its streams until its timeout"
    assert rest == []
    assert (poll.status_code, poll.json()["events"]) == (200, [])
    assert "Traceback" not in process.log.read_text(), process.log.read_text()


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ({}, "DATABASE_URL and CELERY_BROKER_URL must be set"),
        ({"DATABASE_URL": "postgresql://127.0.0.1/x"}, "CELERY_BROKER_URL must be set"),
        ({"DATABASE_URL": "mysql://u:hunter2@h/d", "CELERY_BROKER_URL": "redis://127.0.0.1"}, "must be a Postgres URL"),
        (
            {"DATABASE_URL": "postgresql://127.0.0.1/x", "CELERY_BROKER_URL": "redis://127.0.0.1", "TURNLINE_SECRET_KEYS": "hunter2"},
            "TURNLINE_SECRET_KEYS",
        ),
    ],
)
def test_missing_or_invalid_settings_are_reported_and_end_the_process(env, sentence, tmp_path):
    process = Served(tmp_path / "log", **env)

    assert process.process.wait(30) not in (0, None)
    output = process.log.read_text()
    assert sentence in output
    assert "Traceback" not in output
    assert "hunter2" not in output


def test_process_starts_before_its_servers(tmp_path):
    process = Served(tmp_path / "log", DATABASE_URL="postgresql://127.0.0.1:1/x", CELERY_BROKER_URL="redis://127.0.0.1:1")
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                alive = httpx.get(f"{process.url}/healthz", trust_env=False)
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline
                assert process.process.poll() is None, process.log.read_text()
                time.sleep(0.05)
        assert alive.status_code == 200
        ready = httpx.get(f"{process.url}/readyz", trust_env=False, timeout=15)
        assert ready.status_code == 503
        assert ready.json()["checks"] == {"database": "the database does not answer", "broker": "the broker does not answer"}
    finally:
        assert process.stop() in (0, -signal.SIGTERM), process.log.read_text()
