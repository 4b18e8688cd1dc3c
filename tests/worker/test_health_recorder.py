"""Real tool calls count for the health of integrations, without a write for each."""

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


async def tenant_with_tool(database: Database) -> tuple[Tenant, UUID]:
    made = await tenant(database, tools=({"name": "orders", "integration": {}},))
    async with database.transaction(made.workspace_id) as db:
        return made, (await db.exec_driver_sql("SELECT id FROM tool_integrations")).scalar_one()


async def probe_fails(database: Database, settings: Settings, made: Tenant, integration_id: UUID) -> None:
    await tool_health.record(
        database, tool_health.Observation(made.workspace_id, integration_id, SILENT), thresholds(settings), every_s=300
    )


def stored(database_url: str, integration_id: UUID) -> Any:
    with psycopg.connect(database_url) as db:
        query = "SELECT health_status, error_count, last_health_check FROM tool_integrations WHERE id = %s"
        return db.execute(query, [integration_id]).fetchone()


async def test_successful_calls_outweigh_failed_probes(database: Database, database_url: str, settings: Settings):
    made, integration_id = await tenant_with_tool(database)
    for _ in range(4):  # new workers, which have recorded nothing yet
        recorder = HealthRecorder(database, settings)
        for _ in range(2):
            await probe_fails(database, settings, made, integration_id)
        recorder.of(made.workspace_id)(integration_id, None)
        await recorder.write()
        assert stored(database_url, integration_id)[:2] == ("degraded", 0)

    recorder = HealthRecorder(database, settings)
    recorder.of(made.workspace_id)(integration_id, None)
    await recorder.write()

    assert stored(database_url, integration_id)[:2] == ("healthy", 0)


async def test_integration_with_successful_calls_is_not_probed(database: Database, database_url: str, settings: Settings):
    made, integration_id = await tenant_with_tool(database)
    recorder = HealthRecorder(database, settings)
    recorder.of(made.workspace_id)(integration_id, None)
    await recorder.write()

    with psycopg.connect(database_url) as db:
        due = db.execute("SELECT next_health_check - now() > interval '200 seconds' FROM tool_integrations WHERE id = %s", [integration_id])
        assert due.fetchone() == (True,)


async def test_successes_are_written_a_few_times_per_interval(database: Database, database_url: str, settings: Settings):
    made, integration_id = await tenant_with_tool(database)
    recorder = HealthRecorder(database, settings)
    on_result = recorder.of(made.workspace_id)
    on_result(integration_id, None)
    await recorder.write()
    first = stored(database_url, integration_id)
    for _ in range(1_000):
        on_result(integration_id, None)
        await recorder.write()
    assert stored(database_url, integration_id) == first

    frequent = HealthRecorder(database, settings.model_copy(update={"health_every_s": 0.04}))
    for _ in range(2):
        frequent.of(made.workspace_id)(integration_id, None)
        await frequent.write()
        again, first = first, stored(database_url, integration_id)
        assert first != again
        with psycopg.connect(database_url) as db:
            db.execute("SELECT pg_sleep(0.02)")


async def test_success_of_a_degraded_or_failed_integration_is_written_at_once(database: Database, database_url: str, settings: Settings):
    made, integration_id = await tenant_with_tool(database)
    recorder = HealthRecorder(database, settings)
    for degraded, error in (((), None), ((integration_id,), None), ((), "no connection"), ((), None)):
        before = stored(database_url, integration_id)
        recorder.of(made.workspace_id, degraded)(integration_id, error)
        await recorder.write()
        assert stored(database_url, integration_id) != before
