"""Checks that a model's input is in an order that every provider accepts."""

from __future__ import annotations

from collections import Counter

from engine.enums import Role
from engine.model.request import ModelRequest, PromptMessage


def provider_valid(request: ModelRequest) -> list[str]:
    """Return the faults of `request` for which some provider would reject it, as sentences.

    The vendors' rules, all of which are checked:

    - OpenAI (chat completions): an assistant message with tool calls is followed by one tool message for each of them, before anything
      else; there are no other tool messages. The system message may be anywhere.
    - Anthropic (messages): the system text is a field of its own; the first message is the user's; the results of all tool calls are
      in the very next message, which is the user's, each once; tool call ids are unique; no text is empty; newer models refuse a last
      message of the assistant's, older ones continue it. Neighbours of one role are taken as one message.
    - Amazon Bedrock (Converse): as Anthropic, and roles alternate strictly, so that its module must join neighbours of one role, which it
      can do with any input that is valid here.
    - Ollama (chat): accepts roles in any order, but gives a result to the call before it, by order; with a last message of the assistant's
      it answers with nothing.
    """
    system, *messages = request.messages or (None,)
    wrong = [] if system is not None and system.role is Role.SYSTEM and system.text else ["it does not begin with a system message"]
    if any(message.role is Role.SYSTEM for message in messages):
        wrong.append("a second system message")
    if not messages:
        return [*wrong, "there are no messages"]
    if messages[0].role is not Role.USER:
        wrong.append(f"the conversation begins with {messages[0].role}")
    if messages[-1].role is Role.ASSISTANT:
        wrong.append("the conversation ends with assistant")
    wrong += [f"message {at} is empty" for at, message in enumerate(messages) if not message.text and not message.tool_calls]
    return wrong + _calls_and_results(messages)


def _calls_and_results(messages: list[PromptMessage]) -> list[str]:
    """Return the faults of tool calls and results: each call must have one result directly after it, and there are no other results."""
    wrong = []
    counts = Counter(call.tool_call_id for message in messages for call in message.tool_calls)
    wrong += [f"tool call {name} occurs {count} times" for name, count in counts.items() if count > 1]
    at = 0
    while at < len(messages):
        message = messages[at]
        at += 1
        if message.role is Role.TOOL:
            wrong.append(f"a result of {message.tool_call_id} that does not follow its call")
        elif message.tool_calls and message.role is not Role.ASSISTANT:
            wrong.append(f"a {message.role} message has tool calls")
        elif message.tool_calls:
            open_calls: list[str | None] = [call.tool_call_id for call in message.tool_calls]
            while at < len(messages) and messages[at].role is Role.TOOL and messages[at].tool_call_id in open_calls:
                open_calls.remove(messages[at].tool_call_id)
                at += 1
            wrong += [f"tool call {name} has no result after it" for name in open_calls]
    return wrong
