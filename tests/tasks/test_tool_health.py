"""The job that asks every integration: what one tenant has saved does not keep others' from being asked."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import psycopg
import pytest

from settings import Settings
from store.database import Database
from tasks import jobs
from tasks.tools import CHECK_ALL
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
        _, counts = await jobs.run(CHECK_ALL, settings=settings.model_copy(update=changed), asked_by="test")
    return counts


async def test_an_address_that_is_none_fails_alone(database: Database, database_url: str, settings: Settings):
    async with serve(answering(response({}))) as server:
        good = await tenant(database, tools=configured(*({"url": f"{server.url}/{number}"} for number in range(20))))
        bad = await tenant(database, tools=configured({"url": "http://a..b/"}, {"url": "https://xn--/"}))
        counts = await by_hand(settings)

    assert counts == {"checked": 22, "failed": 2, "changed": 20}
    assert statuses(database_url, good) == ["healthy"] * 20
    assert statuses(database_url, bad) == ["unknown"] * 2


async def test_a_check_that_breaks_is_logged_without_contents_and_ends_no_other(
    database: Database, database_url: str, settings: Settings, caplog: pytest.LogCaptureFixture
):
    async with serve(answering(response({}))) as server:
        good = await tenant(database, tools=configured(*({"url": f"{server.url}/{number}"} for number in range(20))))
        await tenant(database, tools=configured({"health": {"s3cret": 1}}))  # nothing that could be saved
        with caplog.at_level(logging.ERROR, "tasks.tools"):
            counts = await by_hand(settings)

    assert counts == {"checked": 20, "failed": 1, "changed": 20}
    assert statuses(database_url, good) == ["healthy"] * 20
    (record,) = caplog.records
    assert (record.getMessage(), record.__dict__["error"]) == ("a health check broke", "KeyError")
    assert record.__dict__["integration_id"]
    assert "s3cret" not in caplog.text + str(record.__dict__)


async def test_by_hand_what_comes_due_again_meanwhile_is_left_to_the_schedule(database: Database, settings: Settings):
    await tenant(database, tools=configured(*[{"url": f"http://127.0.0.1:{free_port()}/"}] * 5))

    assert await by_hand(settings, health_parallel=2, health_every_s=0.01) == {"checked": 5, "failed": 5, "changed": 0}


async def test_silent_servers_do_not_keep_others_from_being_asked(database: Database, database_url: str, settings: Settings):
    asked, all_asked = 0, asyncio.Event()

    async def good(_: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        if asked == 20:
            all_asked.set()
        writer.write(response({}))

    async def silent(_: Request, writer: asyncio.StreamWriter) -> None:
        await all_asked.wait()
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
