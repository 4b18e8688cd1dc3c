"""Follows a session's log: the one reader behind lists, long polls and server-sent events.

Realtime messages make it fast and may be lost, so the log is also read every `LOOK_EVERY_S` without one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from engine.enums import EventKind
from engine.errors import NotFound
from realtime.messages import Delta
from realtime.subscriber import Subscriber, Subscription
from store.conversations import events, sessions
from store.database import UNAVAILABLE, Database

LOOK_EVERY_S = 2.0


@dataclass(frozen=True, slots=True)
class EventsRead:
    """The next events of the log, by offset; at least one."""

    events: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Idle:
    """The log has been read to its end; yielded at least every `LOOK_EVERY_S` while nothing is appended.

    `error` is set if the database could not be used; the reader keeps trying.
    """

    error: Exception | None = None


class EventReader:
    """Reads and follows the logs of sessions, until `stop` is called when the process shuts down."""

    def __init__(self, database: Database, subscriber: Subscriber) -> None:
        self._database, self._subscriber = database, subscriber
        self._stopped = False

    def stop(self) -> None:
        """End every `follow` soon."""
        self._stopped = True
        self._subscriber.nudge()

    async def read(
        self, workspace_id: UUID, session_id: UUID, after: int, *, kinds: Sequence[str] = (), limit: int = 100
    ) -> list[dict[str, Any]]:
        """Return the session's events above `after`, ascending.

        Raises:
            NotFound: the workspace has no such session.
        """
        async with self._database.transaction(workspace_id) as db:
            found = await events.after(db, session_id, after, kinds=kinds, limit=limit)
            if not found and not await sessions.exists(db, session_id):
                raise NotFound("no such session")
        return found

    async def follow(
        self,
        workspace_id: UUID,
        session_id: UUID,
        after: int,
        *,
        kinds: Sequence[str] = (),
        page_size: int = 100,
        for_s: float | None = None,
    ) -> AsyncGenerator[EventsRead | Delta | Idle]:
        """Yield the session's events above `after` and its streamed text, as they appear.

        Ends when the process shuts down, or after `for_s` seconds with a last look at the log. The deltas of a reply that has been read
        are left out; they may arrive behind it.

        Raises:
            NotFound: the session has been deleted.
        """
        clock = asyncio.get_running_loop().time
        deadline = None if for_s is None else clock() + for_s
        answered_turn_id: UUID | None = None
        async with self._subscriber.subscribe(session_id) as subscription:
            while not self._stopped:
                last_look = deadline is not None and clock() >= deadline
                # Read after subscribing, so that no event falls between the two.
                found, error = await self._look(workspace_id, session_id, after, kinds, page_size)
                if found:
                    after = found[-1]["offset"]
                    answered_turn_id = _last_answered(found) or answered_turn_id
                    yield EventsRead(found)
                    if len(found) == page_size:
                        continue
                yield Idle(error)
                if last_look:
                    return
                look_at = clock() + LOOK_EVERY_S if deadline is None else min(clock() + LOOK_EVERY_S, deadline)
                while (delta := await _next_delta(subscription, look_at - clock())) is not None:
                    if delta.turn_id != answered_turn_id:
                        yield delta

    async def _look(
        self, workspace_id: UUID, session_id: UUID, after: int, kinds: Sequence[str], limit: int
    ) -> tuple[list[dict[str, Any]], Exception | None]:
        try:
            return await self.read(workspace_id, session_id, after, kinds=kinds, limit=limit), None
        except UNAVAILABLE as error:
            return [], error


def _last_answered(found: Sequence[dict[str, Any]]) -> UUID | None:
    """Return the turn whose reply is the last in `found`, if there is one."""
    return next((event["turn_id"] for event in reversed(found) if event["kind"] == EventKind.AGENT_MESSAGE and event["turn_id"]), None)


async def _next_delta(subscription: Subscription, timeout_s: float) -> Delta | None:
    """Return the next delta, or None once the log should be read again: a message says so, or the time is up."""
    if timeout_s <= 0:
        return None
    message = await subscription.next(timeout_s)
    return message if isinstance(message, Delta) else None
