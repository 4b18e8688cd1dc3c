"""Claims and commits of turns, for tests on a real Postgres."""

from __future__ import annotations

from decimal import Decimal
from uuid import UUID

from engine.enums import EventKind, FinishReason, ModelCallState, Source
from engine.events import Event, ModelReply, Usage
from engine.model.request import Cost
from engine.turn.commit import Finish, Reserved, SettledCall, TurnCommit
from engine.turn.context import Limits
from store.conversations import turns
from store.database import Database

FIRST = Reserved(0, 0)
REPLY = ModelReply("Yes.", (), FinishReason.STOP, "gpt-4o", Usage(100, 0, 0, 30, 0))
ASKED = SettledCall(FIRST, ModelCallState.SETTLED, REPLY, Cost(Decimal("0.0005"), "test"))
ANSWERED = TurnCommit(
    events=(Event(EventKind.AGENT_MESSAGE, Source.AI_AGENT, {"text": "Yes."}, {"read_through": 0}),),
    model_call=ASKED,
    outcome=Finish("done"),
)


async def claimed(database: Database, turn_id: UUID | None, owner: str = "me", lease_s: float = 30.0) -> turns.Claim:
    """Claim a turn that can be claimed."""
    assert turn_id is not None
    found = await turns.claim(
        database, turn_id, owner, lease_s=lease_s, max_attempts=5, history_limit=400, limits=Limits(), secrets=lambda *_: {}
    )
    assert isinstance(found, turns.Claim), found
    return found
