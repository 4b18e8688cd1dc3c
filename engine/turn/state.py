"""TurnState, and how events fold into it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from json import dumps
from typing import Any
from uuid import UUID

from engine.enums import EventKind, Role, Source
from engine.events import Event, ToolCall
from engine.turn.context import PromptMessage, PromptToolCall

NOWHERE = 2**31 - 1  # beyond every offset
CUT_OFF = "[The reply was cut off here.]"
YOUR_TURN = "[The customer is waiting for your reply.]"
BEGINNING = "[The conversation begins here.]"


@dataclass(frozen=True, slots=True)
class TurnState:
    """What a turn knows: the history as the model shall see it, and where the turn stands in it.

    `history` is in an order every provider accepts: messages stand before the reply that read them, whenever they arrived,
    and tool results right after their calls. `unread` are customer messages no model call of the log has read yet.
    `calls` are this turn's tool calls, `answered` the ids of all calls with a result. `step` counts this turn's model replies in the log,
    `base_step` those of them that came before it was redriven, which count against no limit; so does `tool_calls`.
    `heard` is the offset of the last customer message known: what a model call made now has read.
    `dropped` says of which turns what was said before which offset is out of the model's sight: they were rolled back, or redriven from
    scratch. Messages from `opened_at_offset` on are this turn's to read, whatever others have said after them.
    """

    turn_id: UUID
    opened_at_offset: int = NOWHERE
    dropped: Mapping[UUID, int] = field(default_factory=dict)
    history: tuple[PromptMessage, ...] = ()
    unread: tuple[tuple[int, str], ...] = ()
    calls: tuple[ToolCall, ...] = ()
    answered: frozenset[str] = frozenset()
    step: int = 0
    base_step: int = 0
    tool_calls: int = 0
    reply: str | None = None
    heard: int = -1

    @classmethod
    def of(cls, turn_id: UUID, opened_at_offset: int, events: Iterable[Event]) -> TurnState:
        """The state of a turn that finds `events` in the log."""
        log = tuple(events)
        return cls(turn_id, opened_at_offset, _dropped(log)).then(log)

    @property
    def pending(self) -> tuple[ToolCall, ...]:
        """This turn's tool calls that have no result yet, in the order asked."""
        return tuple(call for call in self.calls if call.tool_call_id not in self.answered)

    def prompt(self) -> tuple[PromptMessage, ...]:
        """The history followed by what the customer said since, each call with exactly one result.

        Neither the first word nor the last is the model's: the window may begin with one of its own, or a person's who spoke first.
        """
        closed = _closed(self.history)
        if closed and closed[0].role is Role.ASSISTANT:
            closed.insert(0, PromptMessage(Role.USER, BEGINNING))
        said = [PromptMessage(Role.USER, text) for _, text in self.unread]
        if not said and closed and closed[-1].role is Role.ASSISTANT:
            said = [PromptMessage(Role.USER, YOUR_TURN)]
        return (*closed, *said)

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
                if self._out_of_sight(event):
                    return self._numbered(event)
                return self._read(event)._called(event)
            case EventKind.TOOL_RESULT:
                return self if self._out_of_sight(event) else self._resulted(event)
            case EventKind.AGENT_MESSAGE:
                return self if self._out_of_sight(event) else self._read(event)._replied(event)
            case EventKind.STATUS_UPDATE:
                return self._status(event)
            case _:
                return self

    def _out_of_sight(self, event: Event) -> bool:
        return event.turn_id is not None and 0 <= event.offset < self.dropped.get(event.turn_id, 0)

    def _numbered(self, event: Event) -> TurnState:
        """A call out of sight: what this turn does next is numbered after it, so that no key of it is used again."""
        if event.turn_id != self.turn_id:
            return self
        return replace(self, step=event.metadata.get("step", self.step) + 1)

    def _read(self, event: Event) -> TurnState:
        """Move the messages that the author of `event` had read into the history, before it."""
        through = event.metadata.get("read_through", event.offset)
        if event.turn_id != self.turn_id:
            through = min(through, self.opened_at_offset - 1)
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

    def _status(self, event: Event) -> TurnState:
        """A reply that was cut off is kept, and marked as such; a turn that is redriven begins to count anew."""
        content = event.content
        if event.turn_id == self.turn_id and content.get("status") == "redriven":
            return replace(self, base_step=self.step, tool_calls=0)
        partial = content.get("partial_text")
        if not partial or content.get("rolled_back"):
            return self
        state = self._read(event)
        return replace(state, history=(*state.history, PromptMessage(Role.ASSISTANT, f"{partial} {CUT_OFF}")))


def tool_result_text(content: Mapping[str, Any]) -> str:
    """What the model reads of a tool result: the result as JSON, or its status and what went wrong.

    Where a person had changed the arguments, they are told as well.
    """
    if content.get("status") == "succeeded":
        said: Any = content.get("result")
        if "edited_arguments" in content:
            said = {"arguments_were_changed_to": content["edited_arguments"], "result": said}
    else:
        said = {"status": content.get("status"), "error": content.get("error")}
    return dumps(said, ensure_ascii=False, separators=(",", ":"))


def _dropped(log: tuple[Event, ...]) -> dict[UUID, int]:
    return {
        event.turn_id: event.offset
        for event in log
        if event.kind is EventKind.STATUS_UPDATE
        and event.turn_id is not None
        and (event.content.get("rolled_back") or (event.content.get("status") == "redriven" and event.content.get("from_scratch")))
    }


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
