"""The audit, run repeatedly on a busy database, does not report work in progress as a violation."""

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

RUNNING = "SELECT count(*) FROM turns WHERE status = 'running'"


async def test_audits_of_a_busy_database_find_no_violation(stack: Stack, database: Database, dispatcher: Dispatcher):
    """The load: turns with tools, messages that coalesce into them, and a worker that is killed while it runs turns."""
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
        before = stack.one(RUNNING)
        report = await audit.run(maintenance, since=audit.BEGINNING)
        busy += bool(before and stack.one(RUNNING))
        assert report.findings == {}, report.stored()
    await feeding
    await maintenance.close()
    stack.drained()

    assert busy >= 3, "few audits met running turns, so the run proves nothing"
    assert stack.one("SELECT count(*) FROM turns WHERE attempts > 1") > 0, "the kill interrupted no turn"
    assert violations(stack.database_url) == {}
