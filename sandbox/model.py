"""The fake model: its answer depends only on the last user message, the messages after it, and the tools offered."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from sandbox.argument_finder import call_from_text
from sandbox.markers import Markers, WantedCall
from sandbox.validate import is_reasoning

VOCABULARY = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliet")
NOT_DONE = ("failed", "denied", "unknown", "error", "rejected", "cancelled", "timed_out")
REASON_FIELDS = ("error", "message", "reason", "detail")
MAX_VALUE_CHARS = 120


@dataclass(slots=True)
class Call:
    """A tool call of the model; `arguments` is JSON text, as OpenAI sends it."""

    id: str
    name: str
    arguments: str


@dataclass(slots=True)
class Answer:
    """One reply of the model, before it is encoded in OpenAI's format."""

    content: str | None
    calls: list[Call]
    finish: str
    usage: dict[str, Any] | None


def text_of(content: Any) -> str:
    """Return a message's text, with content parts joined."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(part["text"] for part in content if isinstance(part.get("text"), str))
    return ""


def last_user_index(messages: list[dict[str, Any]]) -> int:
    """Return the index of the last user message, or -1."""
    for index in range(len(messages) - 1, -1, -1):
        if messages[index]["role"] == "user":
            return index
    return -1


class Model:
    """Answers valid requests. Only the tool call ids differ between equal requests."""

    def __init__(self) -> None:
        self._call_numbers = itertools.count(1)

    def answer(self, request: dict[str, Any], markers: Markers, index: int) -> Answer:
        """Return the reply to `request`, whose last user message is at `index` and contains `markers`."""
        messages = request["messages"]
        later = messages[index + 1 :]
        wanted = self._wanted(request, markers, later)
        if wanted:
            calls = self._calls(wanted, messages[index]["content"] if index >= 0 else "", len(messages))
            content, finish = None, "tool_calls"
        else:
            calls = []
            content, finish = _truncate(_text(request, markers, later), request)
        return Answer(content, calls, finish, _usage(request, content, calls))

    def _wanted(self, request: dict[str, Any], markers: Markers, later: list[dict[str, Any]]) -> list[WantedCall]:
        choice = request.get("tool_choice")
        tools = [tool["function"] for tool in request.get("tools") or ()] if choice != "none" else []
        step = sum(1 for message in later if message.get("tool_calls"))
        if step < len(markers.steps):
            return [wanted for wanted in markers.steps[step] if tools or not wanted.offered]
        if markers.loop is not None and tools:
            return [markers.loop]
        if not tools or step or markers.steps or markers.say is not None or markers.words is not None:
            return []
        if isinstance(choice, dict):
            tools = [tool for tool in tools if tool["name"] == choice["function"]["name"]]
        for tool in tools:
            arguments = call_from_text(markers.text, tool)
            if arguments is not None:
                return [WantedCall(tool["name"], json.dumps(arguments))]
        return [WantedCall(tools[0]["name"])] if choice == "required" or isinstance(choice, dict) else []

    def _calls(self, wanted: list[WantedCall], content: Any, length: int) -> list[Call]:
        """Give the calls ids that do not repeat within a session, even after the sandbox was restarted."""
        salt = blake2b(f"{length} {text_of(content)}".encode(), digest_size=4).hexdigest()
        calls: list[Call] = []
        for wanted_call in wanted:
            call_id = calls[-1].id if wanted_call.twin else f"call_{salt}{next(self._call_numbers):06d}"
            calls.append(Call(call_id, wanted_call.name, wanted_call.arguments))
        return calls


def _text(request: dict[str, Any], markers: Markers, later: list[dict[str, Any]]) -> str:
    if markers.say is not None:
        return markers.say
    if markers.words is not None:
        return " ".join(VOCABULARY[number % len(VOCABULARY)] for number in range(markers.words))
    names = {call["id"]: call["function"]["name"] for message in later for call in message.get("tool_calls") or ()}
    results = [message for message in later if message["role"] == "tool"]
    if results:
        return " ".join(_describe_result(names[message["tool_call_id"]], text_of(message["content"])) for message in results)
    count = sum(1 for message in request["messages"] if message["role"] == "user")
    not_called = f" No tool was offered, so {markers.steps[0][0].name} was not called." if markers.steps else ""
    return f'You said: "{markers.text[:200]}". That is message {count} from you.{not_called}'


def _describe_result(name: str, text: str) -> str:
    """Return one sentence that quotes a tool's result, field by field if it is an object."""
    try:
        result = json.loads(text)
    except (ValueError, RecursionError):
        result = text
    if not isinstance(result, dict):
        return f"According to {name}: {_describe_value(result)}."
    status = result.get("status")
    reason = next((result[key] for key in REASON_FIELDS if result.get(key)), None)
    if status in NOT_DONE or result.get("error"):
        state = status if status in NOT_DONE and status != "error" else "failed"
        return f"{name} {'is ' if state == 'unknown' else ''}{state}: {_describe_value(reason or 'no reason given')}."
    fields = ", ".join(f"{key} is {_describe_value(value)}" for key, value in result.items())
    return f"According to {name}: {fields or 'nothing'}."


def _describe_value(value: Any) -> str:
    words = value if isinstance(value, str) else json.dumps(value)
    return words if len(words) <= MAX_VALUE_CHARS else words[:MAX_VALUE_CHARS] + "…"


def _truncate(content: str, request: dict[str, Any]) -> tuple[str, str]:
    """Return as much of `content` as the token limit allows, and the finish reason."""
    most = request.get("max_completion_tokens") or request.get("max_tokens")
    if most is not None and len(content) > 4 * most:
        return content[: 4 * most], "length"
    return content, "stop"


def _usage(request: dict[str, Any], content: str | None, calls: list[Call]) -> dict[str, Any]:
    """Return the usage, counting four characters as one token.

    From the second step on, everything up to the last assistant message counts as cached.
    """
    messages = request["messages"]
    sizes = [_size(message) for message in messages]
    tools = sum(24 + len(tool["function"].get("description") or "") // 4 for tool in request.get("tools") or ())
    roles = [message["role"] for message in messages]
    has_history = roles.count("assistant") + roles.count("tool") > 1
    cached = tools + sum(sizes[: len(roles) - roles[::-1].index("assistant")]) if has_history else 0
    prompt = 3 + tools + sum(sizes)
    reasoning = 16 + prompt % 48 if is_reasoning(request["model"]) else 0
    completion = max(1, len(content or "") // 4) + sum(4 + (len(call.name) + len(call.arguments)) // 4 for call in calls)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion + reasoning,
        "total_tokens": prompt + completion + reasoning,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": reasoning, "audio_tokens": 0},
    }


def _size(message: dict[str, Any]) -> int:
    size = 4 + len(text_of(message.get("content"))) // 4
    for call in message.get("tool_calls") or ():
        size += 4 + (len(call["function"]["name"]) + len(call["function"]["arguments"])) // 4
    return size
