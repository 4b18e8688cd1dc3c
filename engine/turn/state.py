"""The state of a turn, folded from its session's log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from json import dumps
from typing import Any
from uuid import UUID

from engine.enums import EventKind, Role, Source
from engine.events import Event, ToolCall
from engine.turn.context import PromptMessage, PromptToolCall

NO_OFFSET = 2**31 - 1  # greater than every offset
CUT_OFF = "[The reply was cut off here.]"
CUSTOMER_WAITS = "[The customer is waiting for your reply.]"
CONVERSATION_BEGINS = "[The conversation begins here.]"


@dataclass(frozen=True, slots=True)
class TurnState:
    """The history as the model sees it, and this turn's position in it.

    `history` is in an order that every provider accepts: messages precede the reply that read them, whenever they arrived, and tool
    results follow their calls. `unread`: (offset, text) of customer messages that no model call in the log has read yet. `calls`: this
    turn's tool calls; `answered`: the ids of all calls with a result. `step` counts this turn's model replies; `base_step` counts those
    before it was redriven, which count against no limit. `tool_calls` counts its tool calls since then. `last_message_offset`: the offset
    of the last customer message known, up to which a model call made now has read.

    `dropped`: by turn, the offset below which its events are hidden from the model, because it was rolled back or redriven from scratch.
    Messages from `opened_at_offset` on are for this turn to read, whatever follows them in the log.
    """

    turn_id: UUID
    opened_at_offset: int = NO_OFFSET
    dropped: Mapping[UUID, int] = field(default_factory=dict)
    history: tuple[PromptMessage, ...] = ()
    unread: tuple[tuple[int, str], ...] = ()
    calls: tuple[ToolCall, ...] = ()
    answered: frozenset[str] = frozenset()
    step: int = 0
    base_step: int = 0
    tool_calls: int = 0
    reply: str | None = None
    last_message_offset: int = -1

    @classmethod
    def of(cls, turn_id: UUID, opened_at_offset: int, events: Iterable[Event]) -> TurnState:
        """Return the state of a turn whose session has `events` in its log."""
        log = tuple(events)
        return cls(turn_id, opened_at_offset, _hidden_below(log)).then(log)

    @property
    def pending(self) -> tuple[ToolCall, ...]:
        """This turn's tool calls without a result, in the order asked."""
        return tuple(call for call in self.calls if call.tool_call_id not in self.answered)

    def prompt(self) -> tuple[PromptMessage, ...]:
        """Return the history followed by the unread messages; each tool call has exactly one result.

        It neither begins nor ends with the assistant, which some providers refuse: the log that was read may begin with a reply.
        """
        messages = _with_all_results(self.history)
        if messages and messages[0].role is Role.ASSISTANT:
            messages.insert(0, PromptMessage(Role.USER, CONVERSATION_BEGINS))
        unread = [PromptMessage(Role.USER, text) for _, text in self.unread]
        if not unread and messages and messages[-1].role is Role.ASSISTANT:
            unread = [PromptMessage(Role.USER, CUSTOMER_WAITS)]
        return (*messages, *unread)

    def then(self, events: Iterable[Event]) -> TurnState:
        """Return the state after `events`, which follow those folded so far. A customer message folded twice changes nothing."""
        state = self
        for event in events:
            state = state._after(event)
        return state

    def _after(self, event: Event) -> TurnState:
        match event.kind:
            case EventKind.CUSTOMER_MESSAGE:
                if event.offset <= self.last_message_offset:
                    return self
                return replace(
                    self, last_message_offset=event.offset, unread=(*self.unread, (event.offset, str(event.content.get("text", ""))))
                )
            case EventKind.TOOL_CALL:
                if self._hidden(event):
                    return self._with_step_after(event)
                return self._with_messages_read_by(event)._with_call(event)
            case EventKind.TOOL_RESULT:
                return self if self._hidden(event) else self._with_result(event)
            case EventKind.AGENT_MESSAGE:
                return self if self._hidden(event) else self._with_messages_read_by(event)._with_reply(event)
            case EventKind.STATUS_UPDATE:
                return self._with_status(event)
            case _:
                return self

    def _hidden(self, event: Event) -> bool:
        return event.turn_id is not None and 0 <= event.offset < self.dropped.get(event.turn_id, 0)

    def _with_step_after(self, event: Event) -> TurnState:
        """Count a hidden tool call, so that this turn's next step gets a new number and no idempotency key is used twice."""
        if event.turn_id != self.turn_id:
            return self
        return replace(self, step=event.metadata.get("step", self.step) + 1)

    def _with_messages_read_by(self, event: Event) -> TurnState:
        """Move the messages that the author of `event` had read from `unread` to the history, before the event."""
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

    def _with_call(self, event: Event) -> TurnState:
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
        own_call = ToolCall(call.tool_call_id, call.tool_name, content.get("arguments"), call.arguments)
        return replace(
            self,
            history=history,
            calls=(*self.calls, own_call),
            tool_calls=self.tool_calls + 1,
            step=event.metadata.get("step", self.step) + 1,
        )

    def _with_result(self, event: Event) -> TurnState:
        content = event.content
        result = PromptMessage(Role.TOOL, tool_result_text(content), tool_call_id=content["tool_call_id"])
        return replace(self, history=(*self.history, result), answered=self.answered | {content["tool_call_id"]})

    def _with_reply(self, event: Event) -> TurnState:
        text = str(event.content.get("text", ""))
        mine = event.turn_id == self.turn_id and event.source is Source.AI_AGENT
        return replace(self, history=(*self.history, PromptMessage(Role.ASSISTANT, text)), reply=text if mine else self.reply)

    def _with_status(self, event: Event) -> TurnState:
        """Keep a reply that was cut off, marked as such; restart the counts of a turn that was redriven."""
        content = event.content
        if event.turn_id == self.turn_id and content.get("status") == "redriven":
            return replace(self, base_step=self.step, tool_calls=0)
        partial = content.get("partial_text")
        if not partial or content.get("rolled_back"):
            return self
        state = self._with_messages_read_by(event)
        return replace(state, history=(*state.history, PromptMessage(Role.ASSISTANT, f"{partial} {CUT_OFF}")))


def tool_result_text(content: Mapping[str, Any]) -> str:
    """Return the text of a tool result for the model: the result as JSON, or its status and error.

    Arguments that a person changed are included.
    """
    if content.get("status") == "succeeded":
        value: Any = content.get("result")
        if "edited_arguments" in content:
            value = {"arguments_were_changed_to": content["edited_arguments"], "result": value}
    else:
        value = {"status": content.get("status"), "error": content.get("error")}
    return dumps(value, ensure_ascii=False, separators=(",", ":"))


def _hidden_below(log: tuple[Event, ...]) -> dict[UUID, int]:
    return {
        event.turn_id: event.offset
        for event in log
        if event.kind is EventKind.STATUS_UPDATE
        and event.turn_id is not None
        and (event.content.get("rolled_back") or (event.content.get("status") == "redriven" and event.content.get("from_scratch")))
    }


def _with_all_results(history: tuple[PromptMessage, ...]) -> list[PromptMessage]:
    """Return `history` with exactly one result after each tool call, and no result without its call.

    The part of the log that was read may begin in the middle of a step, and a dead turn may have left a call without a result.
    """
    results = {message.tool_call_id: message for message in history if message.role is Role.TOOL}
    complete: list[PromptMessage] = []
    for message in history:
        if message.role is Role.TOOL:
            continue
        complete.append(message)
        for call in message.tool_calls:
            missing = PromptMessage(Role.TOOL, '{"status":"unknown","error":"No result was recorded."}', tool_call_id=call.tool_call_id)
            complete.append(results.get(call.tool_call_id, missing))
    return complete
