"""What a worker's tool calls say of health: answers count, without a write for each."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import psycopg
import pytest

from settings import Settings
from store.catalog import tool_health
from store.database import Database
from tests.support.factories import Tenant, tenant
from worker.health_recorder import HealthRecorder, thresholds

SILENT = "The tool's server did not answer within 5 s"


@pytest.fixture
def settings(database_url: str) -> Settings:
    return Settings(_env_file=None, DATABASE_URL=database_url)


async def made_with(database: Database) -> tuple[Tenant, UUID]:
    made = await tenant(database, tools=({"name": "orders", "integration": {}},))
    async with database.transaction(made.workspace_id) as db:
        return made, (await db.exec_driver_sql("SELECT id FROM tool_integrations")).scalar_one()


async def probe_fails(database: Database, settings: Settings, made: Tenant, integration_id: UUID) -> None:
    await tool_health.record(
        database, tool_health.Observation(made.workspace_id, integration_id, SILENT), thresholds(settings), every_s=300
    )


def held(database_url: str, integration_id: UUID) -> Any:
    with psycopg.connect(database_url) as db:
        query = "SELECT health_status, error_count, last_health_check FROM tool_integrations WHERE id = %s"
        return db.execute(query, [integration_id]).fetchone()


async def test_calls_that_go_well_outweigh_probes_that_do_not(database: Database, database_url: str, settings: Settings):
    made, integration_id = await made_with(database)
    for _ in range(4):  # workers that begin, and have heard nothing else
        hearing = HealthRecorder(database, settings)
        for _ in range(2):
            await probe_fails(database, settings, made, integration_id)
        hearing.of(made.workspace_id)(integration_id, None)
        await hearing.write()
        assert held(database_url, integration_id)[:2] == ("degraded", 0)

    hearing = HealthRecorder(database, settings)
    hearing.of(made.workspace_id)(integration_id, None)
    await hearing.write()

    assert held(database_url, integration_id)[:2] == ("healthy", 0)


async def test_an_integration_whose_calls_go_well_is_not_due(database: Database, database_url: str, settings: Settings):
    made, integration_id = await made_with(database)
    hearing = HealthRecorder(database, settings)
    hearing.of(made.workspace_id)(integration_id, None)
    await hearing.write()

    with psycopg.connect(database_url) as db:
        due = db.execute("SELECT next_health_check - now() > interval '200 seconds' FROM tool_integrations WHERE id = %s", [integration_id])
        assert due.fetchone() == (True,)


async def test_answers_are_written_once_in_a_while(database: Database, database_url: str, settings: Settings):
    made, integration_id = await made_with(database)
    hearing = HealthRecorder(database, settings)
    hear = hearing.of(made.workspace_id)
    hear(integration_id, None)
    await hearing.write()
    first = held(database_url, integration_id)
    for _ in range(1_000):
        hear(integration_id, None)
        await hearing.write()
    assert held(database_url, integration_id) == first

    context = HealthRecorder(database, settings.model_copy(update={"health_every_s": 0.04}))
    for _ in range(2):
        context.of(made.workspace_id)(integration_id, None)
        await context.write()
        again, first = first, held(database_url, integration_id)
        assert first != again
        with psycopg.connect(database_url) as db:
            db.execute("SELECT pg_sleep(0.02)")


async def test_an_answer_of_what_is_degraded_or_failed_before_is_written_at_once(database: Database, database_url: str, settings: Settings):
    made, integration_id = await made_with(database)
    hearing = HealthRecorder(database, settings)
    for degraded, error in (((), None), ((integration_id,), None), ((), "no connection"), ((), None)):
        before = held(database_url, integration_id)
        hearing.of(made.workspace_id, degraded)(integration_id, error)
        await hearing.write()
        assert held(database_url, integration_id) != before
