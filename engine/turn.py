"""TurnState, and how events fold into it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from json import dumps
from typing import Any
from uuid import UUID

from engine.brief import PromptMessage, PromptToolCall, Role
from engine.events import Event, EventKind, Source, ToolCall


@dataclass(frozen=True, slots=True)
class TurnState:
    """What a turn knows: the history as the model shall see it, and where the turn stands in it.

    `history` is in an order every provider accepts: messages stand before the reply that read them, whenever they arrived,
    and tool results right after their calls. `unread` are customer messages no model call of the log has read yet.
    `calls` are this turn's tool calls, `answered` the ids of all calls with a result. `step` counts this turn's model replies in the log.
    `heard` is the offset of the last customer message known: what a model call made now has read.
    """

    turn_id: UUID
    history: tuple[PromptMessage, ...] = ()
    unread: tuple[tuple[int, str], ...] = ()
    calls: tuple[ToolCall, ...] = ()
    answered: frozenset[str] = frozenset()
    step: int = 0
    tool_calls: int = 0
    reply: str | None = None
    heard: int = -1

    @property
    def pending(self) -> tuple[ToolCall, ...]:
        """This turn's tool calls that have no result yet, in the order asked."""
        return tuple(call for call in self.calls if call.tool_call_id not in self.answered)

    def prompt(self) -> tuple[PromptMessage, ...]:
        """The history followed by what the customer said since, each call with exactly one result."""
        return (*_closed(self.history), *(PromptMessage(Role.USER, text) for _, text in self.unread))

    def then(self, events: Iterable[Event]) -> TurnState:
        """The state after `events`, which follow those folded so far. A customer message that was folded before changes nothing."""
        state = self
        for event in events:
            state = state._after(event)
        return state

    def _after(self, event: Event) -> TurnState:
        match event.kind:
            case EventKind.CUSTOMER_MESSAGE:
                if event.offset <= self.heard:
                    return self
                return replace(self, heard=event.offset, unread=(*self.unread, (event.offset, str(event.content.get("text", "")))))
            case EventKind.TOOL_CALL:
                return self._read(event)._called(event)
            case EventKind.TOOL_RESULT:
                return self._resulted(event)
            case EventKind.AGENT_MESSAGE:
                return self._read(event)._replied(event)
            case _:
                return self

    def _read(self, event: Event) -> TurnState:
        """Move the messages that the author of `event` had read into the history, before it."""
        through = event.metadata.get("read_through", event.offset)
        read = [text for offset, text in self.unread if offset <= through]
        if not read:
            return self
        return replace(
            self,
            history=(*self.history, *(PromptMessage(Role.USER, text) for text in read)),
            unread=tuple(pair for pair in self.unread if pair[0] > through),
        )

    def _called(self, event: Event) -> TurnState:
        content = event.content
        call = PromptToolCall(content["tool_call_id"], content["tool_name"], event.metadata.get("raw_arguments") or "{}")
        first = not event.metadata.get("position", 0)
        last = self.history[-1] if self.history else None
        if not first and last is not None and last.tool_calls:
            history = (*self.history[:-1], replace(last, tool_calls=(*last.tool_calls, call)))
        else:
            text, opaque = event.metadata.get("text", ""), tuple(event.metadata.get("opaque", ()))
            history = (*self.history, PromptMessage(Role.ASSISTANT, text, tool_calls=(call,), opaque=opaque))
        if event.turn_id != self.turn_id:
            return replace(self, history=history)
        mine = ToolCall(call.tool_call_id, call.tool_name, content.get("arguments"), call.arguments)
        return replace(
            self, history=history, calls=(*self.calls, mine), tool_calls=self.tool_calls + 1, step=event.metadata.get("step", self.step) + 1
        )

    def _resulted(self, event: Event) -> TurnState:
        content = event.content
        result = PromptMessage(Role.TOOL, tool_result_text(content), tool_call_id=content["tool_call_id"])
        return replace(self, history=(*self.history, result), answered=self.answered | {content["tool_call_id"]})

    def _replied(self, event: Event) -> TurnState:
        text = str(event.content.get("text", ""))
        mine = event.turn_id == self.turn_id and event.source is Source.AI_AGENT
        return replace(self, history=(*self.history, PromptMessage(Role.ASSISTANT, text)), reply=text if mine else self.reply)


def tool_result_text(content: Mapping[str, Any]) -> str:
    """What the model reads of a tool result: the result as JSON, or its status and what went wrong."""
    if content.get("status") == "succeeded":
        return dumps(content.get("result"), ensure_ascii=False, separators=(",", ":"))
    return dumps({"status": content.get("status"), "error": content.get("error")}, ensure_ascii=False, separators=(",", ":"))


def _closed(history: tuple[PromptMessage, ...]) -> list[PromptMessage]:
    """`history` with every tool call followed by exactly one result, and no result without its call.

    The window the log was read by may begin in the middle of a step; and a turn that died may have left a call without a result.
    """
    results = {message.tool_call_id: message for message in history if message.role is Role.TOOL}
    closed: list[PromptMessage] = []
    for message in history:
        if message.role is Role.TOOL:
            continue
        closed.append(message)
        for call in message.tool_calls:
            lost = PromptMessage(Role.TOOL, '{"status":"unknown","error":"No result was recorded."}', tool_call_id=call.tool_call_id)
            closed.append(results.get(call.tool_call_id, lost))
    return closed
