"""A conversation with a running stack, for tests of the operator's controls."""

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

STREAM = "[[words 3000]] [[token-ms 20]]"  # for a minute
ENDED = ("done", "failed", "dead", "cancelled")


@dataclass(slots=True)
class Conversation:
    """One session: sends messages and commands to it, and reads the results."""

    stack: Stack
    database: Database
    dispatcher: Dispatcher
    made: Tenant

    async def send(self, text: str, strategy: str | None = None) -> UUID | None:
        """Send a customer's message; return the turn that it belongs to."""
        accepted = await intake.accept(self.database, self.made.workspace_id, self.made.session_id, text, strategy=strategy)
        self._dispatch(accepted.to_dispatch)
        return accepted.turn_id

    async def cancel(self, turn_id: UUID | None = None) -> str:
        """Cancel a turn, or the session's open turns; return the request's status."""
        if turn_id is None:
            cancelled = await session_control.cancel_session(self.database, self.made.workspace_id, self.made.session_id, by="ops")
        else:
            cancelled = await session_control.cancel_turn(self.database, self.made.workspace_id, turn_id, by="ops")
        self._dispatch(cancelled.to_dispatch)
        return cancelled.status

    async def set_mode(self, mode: str) -> int | None:
        """Set the session's mode; return the offset of its event in the log."""
        switched = await session_control.set_mode(self.database, self.made.workspace_id, self.made.session_id, mode, by="ops")
        self._dispatch(switched.to_dispatch)
        return switched.offset

    def _dispatch(self, turn_id: UUID | None) -> None:
        if turn_id is not None:
            self.dispatcher.dispatch(turn_id)

    async def model_messages(self, text: str) -> list[dict[str, Any]]:
        """Wait for a request to the model whose last user message is `text`; return the latest one's messages."""
        messages: list[dict[str, Any]] = (await self.model_requests(text))[-1]["messages"]
        return messages

    async def model_requests(self, text: str) -> list[dict[str, Any]]:
        """Wait for requests to the model whose last user message is `text`; return them whole."""
        found: list[dict[str, Any]] = []

        def look() -> bool:
            with urllib.request.urlopen(f"{self.stack.sandbox_url}/_sandbox/asked", timeout=10) as reply:
                seen = json.load(reply)
            requests = [{"messages": messages, **others} for messages, others in zip(seen["asked"], seen["with"], strict=True)]
            found[:] = [one for one in requests if [m["content"] for m in one["messages"] if m["role"] == "user"][-1:] == [text]]
            return bool(found)

        await wait_until(look)
        return found

    async def requests(self, text: str, count: int) -> None:
        """Wait until the model got `count` requests with `text` as the last user message."""
        await wait_until(lambda: self.stack.counts()["by_text"].get(text, 0) >= count)

    async def wait_for_stream(self, turn_id: UUID | None) -> None:
        """Wait until some words of the turn's reply have been published."""
        subscriber = Subscriber(self.stack.broker_url)
        await subscriber.open()
        try:
            async with subscriber.subscribe(self.made.session_id) as watch, asyncio.timeout(30):
                streamed = ""
                while streamed.count(" ") < 5:
                    piece = await watch.next(1)
                    streamed += piece.text if isinstance(piece, Delta) and piece.turn_id == turn_id else ""
        finally:
            await subscriber.close()

    async def ended(self, turn_id: UUID | None) -> tuple[str, str | None]:
        """Wait until the turn has ended; return its status and error class."""
        await wait_until(lambda: self.stack.status(turn_id) in ENDED)
        ((status, error),) = self.stack.rows("SELECT status, error_class FROM turns WHERE id = %s", turn_id)
        return status, error

    def log(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Return the session's events: kind, source, content as clients see it."""
        rows = self.stack.rows('SELECT kind, source, content FROM events WHERE session_id = %s ORDER BY "offset"', self.made.session_id)
        return [(kind, source, with_sentences(content)) for kind, source, content in rows]

    def kinds(self) -> list[str]:
        """Return the kinds of the session's events."""
        return [kind for kind, _, _ in self.log()]


async def talk(stack: Stack, database: Database, dispatcher: Dispatcher, *tools: dict[str, Any], **agent: Any) -> Conversation:
    """Start a session of a new tenant."""
    return Conversation(stack, database, dispatcher, await tenant(database, tools=tools, **agent))


def tool(stack: Stack, effect: str, *, approval: str = "never") -> dict[str, Any]:
    """Return the sandbox's tool, which accepts any arguments."""
    configuration = {"url": f"{stack.sandbox_url}/tools/orders_lookup"}
    loose = {"effect": effect, "parameters": {"type": "object"}, "configuration": {"approval": approval}}
    return TOOL | loose | {"integration": {"configuration": configuration}}


async def wait_until(condition: Callable[[], object], within_s: float = 30) -> None:
    """Return once `condition()` is true, without blocking the event loop."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"the condition was not met within {within_s} s"
        await asyncio.sleep(0.02)
