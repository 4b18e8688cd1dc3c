"""Turns run by the engine on a real Postgres, with scripted answers of models and tools."""

from __future__ import annotations

from itertools import count
from typing import Any
from uuid import UUID

from engine.events import ToolCall
from engine.turn.commit import Outcome
from engine.turn.context import Limits
from engine.turn.ports import Performer
from engine.turn.runner import TurnRunner
from store.conversations import turns
from store.database import Database

REFUND = {
    "name": "refund",
    "effect": "unsafe",
    "parameters": {"type": "object", "properties": {"order": {"type": "integer"}}, "required": ["order"]},
}
LOOKUP = {**REFUND, "name": "lookup", "effect": "pure"}
_owners = count()


def tool_call(number: int, tool: str = "refund", **arguments: Any) -> ToolCall:
    """Return the `number`-th tool call of a test."""
    return ToolCall(f"c{number}", tool, arguments or {"order": number}, "{}")


async def claimed(database: Database, turn_id: UUID | None, *, approval_s: float = 600.0, attempts: int = 5) -> Any:
    """Claim the turn as a new worker; return the claim, or the reason why it was not claimed."""
    assert turn_id is not None
    return await turns.claim(
        database,
        turn_id,
        f"worker {next(_owners)}",
        lease_s=30,
        max_attempts=attempts,
        history_limit=400,
        limits=Limits(),
        secrets=lambda *_: {},
        approval_s=approval_s,
    )


async def run_turn(database: Database, turn_id: UUID | None, world: Performer, *, approval_s: float = 600.0) -> Outcome:
    """Run the turn to its next outcome."""
    claim = await claimed(database, turn_id, approval_s=approval_s)
    assert isinstance(claim, turns.Claim), claim
    return await TurnRunner(claim, world, claim.context, claim.resume_point).run()
