"""Turns that wait for approvals, in a workspace of the API's tests."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from engine.enums import ToolStatus
from engine.events import ToolOutcome
from store.conversations import turns
from tests.support.api_server import Tenant, opened, run_in_thread
from tests.support.engine_runs import claimed, run_turn, tool_call
from tests.support.fakes import Script, calls

PARAMETERS = {"type": "object", "properties": {"order": {"type": "integer"}}, "required": ["order"]}


def turn_awaiting_approval(acme: Tenant, *, count: int = 1, configuration: dict[str, Any] | None = None, **tool: Any) -> dict[str, Any]:
    """Make a turn that waits for approval of so many refunds; return its accepted message and the `approval_id` of the first refund."""
    made = acme.tool("refund", parameters=PARAMETERS, **({"effect": "unsafe"} | tool))
    agent = acme.agent(tool_ids=[made["id"]])
    if configuration is not None:
        acme.call("PUT", f"/v1/agents/{agent['id']}/tools", 200, json={"tool_ids": [made["id"]], "configuration": configuration})
    accepted = acme.message(acme.session(agent_id=agent["id"])["id"])
    run_to_outcome(acme, accepted["turn"]["id"], Script(calls(*(tool_call(number) for number in range(count))), tools={}))
    shown = acme.call("GET", f"/v1/approvals?session_id={accepted['event']['session_id']}", 200)["items"]
    return {**accepted, "approval_id": shown[-1]["id"]}


def run_to_outcome(acme: Tenant, turn_id: str, world: Script) -> None:
    """Run the turn to its outcome, as a worker does."""

    async def do() -> None:
        async with opened(acme.service.database_url) as database:
            await run_turn(database, UUID(turn_id), world)

    run_in_thread(do)


def approval_by_tool(acme: Tenant, agent_id: str) -> dict[str, bool]:
    """Return for each tool whether its calls in a new turn need approval."""
    turn_id = acme.message(acme.session(agent_id=agent_id)["id"])["turn"]["id"]

    async def do() -> dict[str, bool]:
        async with opened(acme.service.database_url) as database:
            claim = await claimed(database, UUID(turn_id))
            assert isinstance(claim, turns.Claim)
            return {tool.name: tool.approval for tool in claim.context.tools}

    return run_in_thread(do)


DONE = ToolOutcome(ToolStatus.SUCCEEDED, {"paid": True})
