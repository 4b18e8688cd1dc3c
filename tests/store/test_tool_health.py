"""The schedule of tool health probes, and the recording of observations."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from engine.enums import HealthStatus
from engine.tools.health import Thresholds
from store.catalog import tool_health
from store.conversations import intake
from store.database import Database
from tests.support.claims import claimed
from tests.support.db import fetch
from tests.support.factories import Tenant, tenant

FEW = Thresholds(degraded_after=1, unhealthy_after=2, healthy_after=2)


async def made_with(database: Database, count: int) -> tuple[Tenant, list[UUID]]:
    made = await tenant(database, tools=tuple({"name": f"t{number}", "integration": {}} for number in range(count)))
    async with database.transaction(made.workspace_id) as db:
        rows = await db.exec_driver_sql("SELECT id FROM tool_integrations ORDER BY id")
        return made, [row.id for row in rows]


async def observe(database: Database, made: Tenant, integration_id: UUID, *errors: str | None) -> list[tool_health.Changed | None]:
    return [
        await tool_health.record(database, tool_health.Observation(made.workspace_id, integration_id, error), FEW, every_s=300)
        for error in errors
    ]


@pytest.fixture(autouse=True)
def nothing_due(database_url: str) -> None:
    fetch(database_url, "UPDATE tool_integrations SET next_health_check = now() + interval '1 day'")


async def test_concurrent_takers_get_each_integration_once(database: Database, maintenance: Database):
    _, ids = await made_with(database, 20)

    taken = await asyncio.gather(*(tool_health.take(maintenance, 7, failed=False) for _ in range(6)))

    assert sorted(integration_id for some in taken for _, integration_id in some) == sorted(ids)


async def test_integration_taken_by_dead_process_is_due_again(database: Database, maintenance: Database, database_url: str):
    _, ids = await made_with(database, 2)
    await tool_health.take(maintenance, 10, failed=False)
    assert (await tool_health.how_many_are_due(maintenance))[0] == 0

    fetch(
        database_url, "UPDATE tool_integrations SET next_health_check = next_health_check - interval '61 seconds' WHERE id = ANY (%s)", ids
    )

    assert sorted(one for _, one in await tool_health.take(maintenance, 10, failed=False)) == sorted(ids)


async def test_disabled_integration_is_not_probed(database: Database, maintenance: Database, database_url: str):
    _, ids = await made_with(database, 2)
    fetch(database_url, "UPDATE tool_integrations SET enabled = false WHERE id = %s", ids[0])

    assert [one for _, one in await tool_health.take(maintenance, 10, failed=False)] == [ids[1]]


async def test_failed_integrations_are_taken_separately(database: Database, maintenance: Database, database_url: str):
    made, (well, ill) = await made_with(database, 2)
    await observe(database, made, well, None)
    await observe(database, made, ill, "away")
    fetch(database_url, "UPDATE tool_integrations SET next_health_check = now() - interval '1 minute' WHERE id IN (%s, %s)", well, ill)
    due, now = await tool_health.how_many_are_due(maintenance)

    assert due == 2
    assert await tool_health.take(maintenance, 10, failed=True, due_at=now - timedelta(minutes=2)) == []
    assert [one for _, one in await tool_health.take(maintenance, 10, failed=True, due_at=now)] == [ill]
    assert [one for _, one in await tool_health.take(maintenance, 10, failed=False)] == [well]


async def test_health_changes_are_kept_in_order(database: Database, maintenance: Database, database_url: str):
    made, (integration_id,) = await made_with(database, 1)

    changes = await observe(database, made, integration_id, None, "away", "still away", None, None)

    assert [change and change.now for change in changes] == [
        HealthStatus.HEALTHY,
        HealthStatus.DEGRADED,
        HealthStatus.UNHEALTHY,
        None,
        HealthStatus.HEALTHY,
    ]
    kept = [row for row in await tool_health.changes(maintenance, 50) if row["integration_id"] == integration_id]
    assert [(row["from_status"], row["to_status"], row["error"]) for row in reversed(kept)] == [
        ("unknown", "healthy", None),
        ("healthy", "degraded", "away"),
        ("degraded", "unhealthy", "still away"),
        ("unhealthy", "healthy", None),
    ]
    row = fetch(
        database_url,
        "SELECT health_status, error_count, last_error, last_health_check IS NULL FROM tool_integrations WHERE id = %s",
        integration_id,
    )
    assert row == [("healthy", 0, None, False)]


async def test_failing_integration_is_probed_sooner(database: Database, database_url: str):
    made, (well, ill) = await made_with(database, 2)
    await observe(database, made, well, None)
    await observe(database, made, ill, "away")

    wait = "SELECT extract(epoch FROM next_health_check - now())::float8 FROM tool_integrations WHERE id = %s"
    ((well_s,),), ((ill_s,),) = fetch(database_url, wait, well), fetch(database_url, wait, ill)
    assert 200 < well_s <= 300
    assert 15 < ill_s <= 30


@pytest.mark.parametrize(
    ("failures", "asked_for_s", "soon"),
    [(1, None, False), (1, 0.1, True), (2, None, True)],
    ids=["a call of a degraded integration", "a probe of a degraded integration", "a call of an unhealthy integration"],
)
async def test_answered_call_postpones_probe(database: Database, database_url: str, failures: int, asked_for_s: float | None, soon: bool):
    made, (integration_id,) = await made_with(database, 1)
    await observe(database, made, integration_id, *["away"] * failures)
    await tool_health.record(database, tool_health.Observation(made.workspace_id, integration_id, None, asked_for_s), FEW, every_s=300)

    query = "SELECT next_health_check < now() + interval '31 seconds' FROM tool_integrations WHERE id = %s"
    assert fetch(database_url, query, integration_id) == [(soon,)]


async def test_failed_probe_does_not_count_after_answered_call(database: Database, database_url: str):
    made, (integration_id,) = await made_with(database, 1)
    await observe(database, made, integration_id, None)

    async def fails(asked_for_s: float) -> Any:
        failed = tool_health.Observation(made.workspace_id, integration_id, "silent", asked_for_s)
        await tool_health.record(database, failed, FEW, every_s=300)
        ((count,),) = fetch(database_url, "SELECT error_count FROM tool_integrations WHERE id = %s", integration_id)
        return count

    assert await fails(asked_for_s=60.0) == 0
    assert await fails(asked_for_s=0.0) == 1
    assert await fails(asked_for_s=60.0) == 2  # the observation in between was a failure


async def test_claim_marks_degraded_integrations(database: Database, database_url: str):
    made, ids = await made_with(database, 2)
    fetch(database_url, "UPDATE tool_integrations SET health_status = 'degraded' WHERE id = %s", ids[0])
    accepted = await intake.accept(database, made.workspace_id, made.session_id, "Hello")

    context = (await claimed(database, accepted.turn_id)).context

    assert {one.id: one.degraded for tool in context.tools for one in tool.integrations} == {ids[0]: True, ids[1]: False}


async def test_concurrent_observations_are_all_counted(database: Database, database_url: str):
    made, (integration_id,) = await made_with(database, 1)

    await asyncio.gather(*(observe(database, made, integration_id, "away") for _ in range(8)))

    assert fetch(database_url, "SELECT error_count, health_status FROM tool_integrations WHERE id = %s", integration_id) == [
        (8, "unhealthy")
    ]
    assert len(fetch(database_url, "SELECT 1 FROM tool_health_changes WHERE integration_id = %s", integration_id)) == 2


async def test_tool_is_offered_unless_all_integrations_are_unhealthy(database: Database, database_url: str):
    made, ids = await made_with(database, 2)
    fetch(
        database_url,
        "INSERT INTO tool_integrations (workspace_id, tool_id, integration_type, target_id, configuration, priority)"
        " SELECT workspace_id, tool_id, integration_type, 'spare', configuration, -1 FROM tool_integrations WHERE id = %s",
        ids[1],
    )
    fetch(database_url, "UPDATE tool_integrations SET health_status = 'unhealthy' WHERE id = ANY (%s)", ids)
    accepted = await intake.accept(database, made.workspace_id, made.session_id, "Hello")

    context = (await claimed(database, accepted.turn_id)).context

    offered = {tool.name: (tool.offered, len(tool.integrations)) for tool in context.tools}
    assert sorted(offered.values()) == [(False, 0), (True, 1)]
