"""`turnline tools` as a process."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from engine.tools.health import Thresholds
from store.catalog import tool_health
from store.database import Database
from tests.support.cli import Turnline
from tests.support.cli import turnline as run_cli
from tests.support.factories import tenant

FEW = Thresholds(degraded_after=1, unhealthy_after=2, healthy_after=2)
WHY = "The tool's server could not be reached: no connection"


@pytest.fixture
def turnline(tmp_path: Path, database_url: str) -> Turnline:
    """Run `turnline tools` against the module's database."""
    return partial(run_cli, directory=tmp_path, DATABASE_URL=database_url, COLUMNS="300")


async def test_it_lists_what_is_not_well_and_what_has_changed(turnline: Turnline, database_url: str):
    assert "there are none" in turnline("tools").stdout
    database = Database(database_url, pool_size=2)
    await database.open()
    made = await tenant(database, tools=tuple({"name": name, "integration": {}} for name in ("one", "two")))
    async with database.transaction(made.workspace_id) as db:
        well, ill = [row.id for row in await db.exec_driver_sql("SELECT id FROM tool_integrations ORDER BY id")]
    for integration_id, error in ((well, None), (ill, WHY), (ill, WHY)):
        await tool_health.record(database, tool_health.Observation(made.workspace_id, integration_id, error), FEW, every_s=300)
    await database.close()

    shown = turnline("tools")
    told = json.loads(turnline("tools", "--json").stdout)

    assert shown.returncode == 0, shown.stderr
    assert "1 healthy, 1 unhealthy" in shown.stdout
    assert WHY in shown.stdout
    assert [(one["id"], one["error_count"], one["last_error"]) for one in told["not_well"]] == [(str(ill), 2, WHY)]
    assert [(one["integration_id"], one["to_status"]) for one in told["changes"]] == [
        (str(ill), "unhealthy"),
        (str(ill), "degraded"),
        (str(well), "healthy"),
    ]
