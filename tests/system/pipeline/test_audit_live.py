"""A database at work is audited again and again, and nothing that is merely under way is taken for wrong."""

from __future__ import annotations

import asyncio
from typing import Any

from store.conversations import intake
from store.database import MAINTENANCE_ROLE, Database
from store.operations import audit
from tasks.dispatcher import Dispatcher
from tests.support.factories import tenant
from tests.support.invariants import violations
from tests.support.stack import TOOL, Stack

UNDER_WAY = "SELECT count(*) FROM turns WHERE status = 'running'"


async def test_audits_of_a_busy_database_find_no_violation(stack: Stack, database: Database, dispatcher: Dispatcher):
    """Turns with tools, messages that coalesce into them, and a worker that is killed while it carries some."""
    configuration: dict[str, Any] = {"url": f"{stack.sandbox_url}/tools/orders_lookup"}
    made = await tenant(database, sessions=40, tools=({**TOOL, "integration": {"configuration": configuration}},))
    doomed = stack.worker(queues="turns")
    stack.beat()
    maintenance = Database(stack.database_url, role=MAINTENANCE_ROLE, pool_size=2)
    await maintenance.open()

    async def feed() -> None:
        for round_number in range(4):
            for session_id in made.session_ids:
                text = f"Is order {round_number} paid? [[latency 150]]"
                accepted = await intake.accept(database, made.workspace_id, session_id, text)
                if accepted.to_dispatch and accepted.turn_id is not None:
                    dispatcher.dispatch(accepted.turn_id)
            await asyncio.sleep(0.3)
            if round_number == 1:
                doomed.kill()
                stack.worker(wait=False)

    feeding = asyncio.create_task(feed())
    busy = 0
    while not feeding.done() or stack.one("SELECT count(*) FROM turns WHERE status IN ('queued', 'running')"):
        before = stack.one(UNDER_WAY)
        report = await audit.run(maintenance, since=audit.BEGINNING)
        busy += bool(before and stack.one(UNDER_WAY))
        assert report.findings == {}, report.stored()
    await feeding
    await maintenance.close()
    stack.drained()

    assert busy >= 3, "the database was hardly at work: the run proves nothing"
    assert stack.one("SELECT count(*) FROM turns WHERE attempts > 1") > 0, "no turn was cut"
    assert violations(stack.database_url) == {}
