"""`turnline tools`, as a process."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from engine.tools.health import Thresholds
from store.catalog import tool_health
from store.database import Database
from tests.support.cli import turnline as run_turnline
from tests.support.factories import tenant

THRESHOLDS = Thresholds(degraded_after=1, unhealthy_after=2, healthy_after=2)
ERROR = "The tool's server could not be reached: no connection"


async def test_tools_lists_unhealthy_integrations_and_changes(database_url: str, tmp_path: Path):
    turnline = partial(run_turnline, "tools", directory=tmp_path, DATABASE_URL=database_url, COLUMNS="300")
    assert "there are none" in turnline().stdout
    database = Database(database_url, pool_size=2)
    await database.open()
    workspace = await tenant(database, tools=tuple({"name": name, "integration": {}} for name in ("one", "two")))
    async with database.transaction(workspace.workspace_id) as db:
        healthy, unhealthy = [row.id for row in await db.exec_driver_sql("SELECT id FROM tool_integrations ORDER BY id")]
    for integration_id, error in ((healthy, None), (unhealthy, ERROR), (unhealthy, ERROR)):
        await tool_health.record(database, tool_health.Observation(workspace.workspace_id, integration_id, error), THRESHOLDS, every_s=300)
    await database.close()

    result = turnline()
    report = json.loads(turnline("--json").stdout)

    assert result.returncode == 0, result.stderr
    assert "1 healthy, 1 unhealthy" in result.stdout
    assert ERROR in result.stdout
    assert [(one["id"], one["error_count"], one["last_error"]) for one in report["not_well"]] == [(str(unhealthy), 2, ERROR)]
    assert [(one["integration_id"], one["to_status"]) for one in report["changes"]] == [
        (str(unhealthy), "unhealthy"),
        (str(unhealthy), "degraded"),
        (str(healthy), "healthy"),
    ]
