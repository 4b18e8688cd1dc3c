"""The events that a turn appends to the log."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from engine.enums import CancelReason, EventKind, Source, ToolStatus
from engine.events import Event, ModelReply, ToolCall, ToolOutcome
from engine.turn.commit import Finish

FAILED_TEXT = "This message could not be answered."
SPENT_TEXT = "This message could not be answered: a limit on what may be spent on it has been reached."


def reply_events(reply: ModelReply, turn_id: UUID, *, step: int, read_through: int) -> tuple[Event, ...]:
    """Return the events of a model reply: one with its text, or one for each tool call."""
    position_in_turn = {"step": step, "read_through": read_through}
    if not reply.tool_calls:
        metadata = {**position_in_turn, "model": reply.model, "finish_reason": str(reply.finish_reason)}
        return (Event(EventKind.AGENT_MESSAGE, Source.AI_AGENT, {"text": reply.text}, metadata, turn_id),)
    events = []
    for position, call in enumerate(reply.tool_calls):
        content = {"tool_call_id": call.tool_call_id, "tool_name": call.tool_name, "arguments": call.arguments}
        extra: dict[str, object] = {"position": position, "raw_arguments": call.raw_arguments}
        if position == 0 and reply.text:
            extra["text"] = reply.text
        if position == 0 and reply.opaque:
            extra["opaque"] = list(reply.opaque)
        events.append(Event(EventKind.TOOL_CALL, Source.AI_AGENT, content, {**position_in_turn, **extra}, turn_id))
    return tuple(events)


def result_event(call: ToolCall, outcome: ToolOutcome, edited_arguments: dict[str, Any] | None = None) -> Event:
    """Return the `tool_result` of a call. `edited_arguments`: those that a person put in place of the model's."""
    content: dict[str, object] = {"tool_call_id": call.tool_call_id, "tool_name": call.tool_name, "status": str(outcome.status)}
    if outcome.status is ToolStatus.SUCCEEDED:
        content["result"] = outcome.result
    else:
        content["error"] = outcome.error
    if edited_arguments is not None:
        content["edited_arguments"] = edited_arguments
    return Event(EventKind.TOOL_RESULT, Source.SYSTEM, content)


def failure_event(finish: Finish) -> Event:
    """Return the `status_update` that a customer's client can show when a turn ends without a reply. It has no error detail."""
    text = SPENT_TEXT if finish.error_class == "BudgetSpent" else FAILED_TEXT
    return Event(EventKind.STATUS_UPDATE, Source.SYSTEM, {"status": finish.status, "error_class": finish.error_class, "text": text})


def cancelled_event(reason: CancelReason, partial_text: str, *, read_through: int) -> Event:
    """Return the `status_update` of a cancelled turn, with the part of its reply that was streamed.

    `read_through`: the offset of the last message that this part had read.
    """
    content: dict[str, object] = {"status": "cancelled", "error_class": str(reason), "text": "The reply was cancelled."}
    if partial_text:
        content["partial_text"] = partial_text
    if reason is CancelReason.ROLLED_BACK:
        content["rolled_back"] = True
    return Event(EventKind.STATUS_UPDATE, Source.SYSTEM, content, {"read_through": read_through} if partial_text else {})
