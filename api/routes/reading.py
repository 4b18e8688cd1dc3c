"""Reading a session's log: the one way behind lists, long polls and streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from api.dependencies import AppState
from engine.errors import NotFound
from store.conversations import events, sessions

LOOK_EVERY_S = 2.0  # news may be lost, so readers look at the log at least this often


async def read(
    app_state: AppState, workspace_id: UUID, session_id: UUID, after: int, *, kinds: Sequence[str] = (), limit: int = 100
) -> list[dict[str, Any]]:
    """The session's events above `after`, ascending. Raises NotFound where the workspace has no such session."""
    async with app_state.database.transaction(workspace_id) as db:
        found = await events.after(db, session_id, after, kinds=kinds, limit=limit)
        if not found and not await sessions.exists(db, session_id):
            raise NotFound("no such session")
    return found
