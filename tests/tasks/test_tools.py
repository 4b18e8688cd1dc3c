"""The job that probes every integration: the configuration of one tenant does not keep those of others from being probed."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import psycopg
import pytest

from settings import Settings
from store.database import Database
from tasks import jobs
from tasks.tools import check_all_health
from tests.support.db import fetch
from tests.support.factories import Tenant, tenant
from tests.support.http_servers import Request, answering, response, serve
from tests.support.servers import SECRET_KEY, free_port


@pytest.fixture(autouse=True)
def nothing_due(database_url: str) -> None:
    fetch(database_url, "UPDATE tool_integrations SET next_health_check = now() + interval '1 day'")


@pytest.fixture
def settings(database_url: str) -> Settings:
    given = {"DATABASE_URL": database_url, "secret_keys": SECRET_KEY, "allowed_networks": "127.0.0.0/8"}
    return Settings.model_validate({"_env_file": None, **given})


def configured(*configurations: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    return tuple({"name": f"t{number}", "integration": {"configuration": one}} for number, one in enumerate(configurations))


def statuses(database_url: str, made: Tenant) -> list[str]:
    with psycopg.connect(database_url) as db:
        rows = db.execute("SELECT health_status FROM tool_integrations WHERE workspace_id = %s ORDER BY id", [made.workspace_id])
        return [row[0] for row in rows]


async def by_hand(settings: Settings, **changed: Any) -> dict[str, int]:
    async with asyncio.timeout(60):
        _, counts = await jobs.run(check_all_health, settings=settings.model_copy(update=changed), asked_by="test")
    return counts


async def test_invalid_address_fails_alone(database: Database, database_url: str, settings: Settings):
    async with serve(answering(response({}))) as server:
        good = await tenant(database, tools=configured(*({"url": f"{server.url}/{number}"} for number in range(20))))
        bad = await tenant(database, tools=configured({"url": "http://a..b/"}, {"url": "https://xn--/"}))
        counts = await by_hand(settings)

    assert counts == {"checked": 22, "failed": 2, "changed": 20}
    assert statuses(database_url, good) == ["healthy"] * 20
    assert statuses(database_url, bad) == ["unknown"] * 2


async def test_unexpected_error_is_logged_without_contents_and_stops_no_other_check(
    database: Database, database_url: str, settings: Settings, caplog: pytest.LogCaptureFixture
):
    async with serve(answering(response({}))) as server:
        good = await tenant(database, tools=configured(*({"url": f"{server.url}/{number}"} for number in range(20))))
        await tenant(database, tools=configured({"health": {"s3cret": 1}}))  # cannot be saved through the API
        with caplog.at_level(logging.ERROR, "tasks.tools"):
            counts = await by_hand(settings)

    assert counts == {"checked": 20, "failed": 1, "changed": 20}
    assert statuses(database_url, good) == ["healthy"] * 20
    (record,) = caplog.records
    assert (record.getMessage(), record.__dict__["error"]) == ("Health check failed with an unexpected error", "KeyError")
    assert record.__dict__["integration_id"]
    assert "s3cret" not in caplog.text + str(record.__dict__)


async def test_run_by_hand_probes_each_integration_once(database: Database, settings: Settings):
    await tenant(database, tools=configured(*[{"url": f"http://127.0.0.1:{free_port()}/"}] * 5))

    assert await by_hand(settings, health_parallel=2, health_every_s=0.01) == {"checked": 5, "failed": 5, "changed": 0}


async def test_silent_servers_do_not_delay_other_checks(database: Database, database_url: str, settings: Settings):
    probed, all_probed = 0, asyncio.Event()

    async def good(_: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal probed
        probed += 1
        if probed == 20:
            all_probed.set()
        writer.write(response({}))

    async def silent(_: Request, writer: asyncio.StreamWriter) -> None:
        await all_probed.wait()
        writer.write(response({}))

    async with serve(silent) as quiet, serve(good) as server:
        failed = await tenant(database, tools=configured(*[{"url": quiet.url}] * 8))
        with psycopg.connect(database_url, autocommit=True) as db:
            db.execute(
                "UPDATE tool_integrations SET error_count = 1, next_health_check = now() - interval '1 hour' WHERE workspace_id = %s",
                [failed.workspace_id],
            )
            await tenant(database, tools=configured(*[{"url": server.url}] * 20))
            db.execute("UPDATE tool_integrations SET next_health_check = now() WHERE next_health_check IS NULL")
        counts = await by_hand(settings, health_parallel=4, health_timeout_s=15.0)

    assert counts == {"checked": 28, "failed": 0, "changed": 28}
