"""A conversation with a running stack, as the tests of its levers hold it."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from engine.sentences import with_sentences
from realtime.messages import Delta
from realtime.subscriber import Subscriber
from store.conversations import intake, session_control
from store.database import Database
from tasks.dispatcher import Dispatcher
from tests.support.factories import Tenant, tenant
from tests.support.stack import TOOL, Stack

STREAM = "[[words 3000]] [[token-ms 20]]"  # a minute of it
ENDED = ("done", "failed", "dead", "cancelled")


@dataclass(slots=True)
class Conversation:
    """One session: what is said in it and done to it, and what came of that."""

    stack: Stack
    database: Database
    dispatcher: Dispatcher
    made: Tenant

    async def send(self, text: str, strategy: str | None = None) -> UUID | None:
        """A customer's message; the turn it was accepted into."""
        accepted = await intake.accept(self.database, self.made.workspace_id, self.made.session_id, text, strategy=strategy)
        self._ring(accepted.to_dispatch)
        return accepted.turn_id

    async def cancel(self, turn_id: UUID | None = None) -> str:
        """Cancel a turn, or the session's; the request's status."""
        if turn_id is None:
            cancelled = await session_control.cancel_session(self.database, self.made.workspace_id, self.made.session_id, by="ops")
        else:
            cancelled = await session_control.cancel_turn(self.database, self.made.workspace_id, turn_id, by="ops")
        self._ring(cancelled.to_dispatch)
        return cancelled.status

    async def set_mode(self, mode: str) -> int | None:
        """Set the session's mode; the offset at which the log send so."""
        switched = await session_control.set_mode(self.database, self.made.workspace_id, self.made.session_id, mode, by="ops")
        self._ring(switched.to_dispatch)
        return switched.offset

    def _ring(self, turn_id: UUID | None) -> None:
        if turn_id is not None:
            self.dispatcher.dispatch(turn_id)

    async def asked(self, text: str) -> list[dict[str, Any]]:
        """The messages of the latest request whose last user message is `text`, once there is one."""
        said: list[dict[str, Any]] = (await self.model_requests(text))[-1]["messages"]
        return said

    async def model_requests(self, text: str) -> list[dict[str, Any]]:
        """The latest requests whose last user message is `text`, whole, once there is one."""
        found: list[dict[str, Any]] = []

        def look() -> bool:
            with urllib.request.urlopen(f"{self.stack.sandbox_url}/_sandbox/asked", timeout=10) as reply:
                seen = json.load(reply)
            requests = [{"messages": said, **rest} for said, rest in zip(seen["asked"], seen["with"], strict=True)]
            found[:] = [one for one in requests if [m["content"] for m in one["messages"] if m["role"] == "user"][-1:] == [text]]
            return bool(found)

        await soon(look)
        return found

    async def requests(self, text: str, count: int) -> None:
        """Wait until the model was asked `count` times with `text` as the last user message."""
        await soon(lambda: self.stack.counts()["by_text"].get(text, 0) >= count)

    async def wait_for_stream(self, turn_id: UUID | None) -> None:
        """Wait until some words of the turn's reply have been passed on."""
        subscriber = Subscriber(self.stack.broker_url)
        await subscriber.open()
        try:
            async with subscriber.subscribe(self.made.session_id) as watch, asyncio.timeout(30):
                heard = ""
                while heard.count(" ") < 5:
                    piece = await watch.next(1)
                    heard += piece.text if isinstance(piece, Delta) and piece.turn_id == turn_id else ""
        finally:
            await subscriber.close()

    async def ended(self, turn_id: UUID | None) -> tuple[str, str | None]:
        """The turn's status and error class, once it has ended."""
        await soon(lambda: self.stack.status(turn_id) in ENDED)
        ((status, error),) = self.stack.rows("SELECT status, error_class FROM turns WHERE id = %s", turn_id)
        return status, error

    def log(self) -> list[tuple[str, str, dict[str, Any]]]:
        """The session's events: kind, source, content as clients see it."""
        rows = self.stack.rows('SELECT kind, source, content FROM events WHERE session_id = %s ORDER BY "offset"', self.made.session_id)
        return [(kind, source, with_sentences(content)) for kind, source, content in rows]

    def kinds(self) -> list[str]:
        """The kinds of the session's events."""
        return [kind for kind, _, _ in self.log()]


async def talk(stack: Stack, database: Database, dispatcher: Dispatcher, *tools: dict[str, Any], **agent: Any) -> Conversation:
    """A new session of a new tenant."""
    return Conversation(stack, database, dispatcher, await tenant(database, tools=tools, **agent))


def tool(stack: Stack, effect: str, *, approval: str = "never") -> dict[str, Any]:
    """The sandbox's tool, which takes anything."""
    configuration = {"url": f"{stack.sandbox_url}/tools/orders_lookup"}
    loose = {"effect": effect, "parameters": {"type": "object"}, "configuration": {"approval": approval}}
    return TOOL | loose | {"integration": {"configuration": configuration}}


async def soon(condition: Callable[[], object], within_s: float = 30) -> None:
    """Return once `condition()` is true; the test's own loop goes on meanwhile."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"it did not come about within {within_s} s"
        await asyncio.sleep(0.02)
