"""What the "model" says: a function of the last user message, of what follows it, and of the tools offered."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from sandbox.filling import call_from_text
from sandbox.markers import Marks, Wanted
from sandbox.validate import is_reasoning

VOCABULARY = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliet")
NOT_DONE = ("failed", "denied", "unknown", "error", "rejected", "cancelled", "timed_out")
REASON_FIELDS = ("error", "message", "reason", "detail")
MAX_VALUE_CHARS = 120


@dataclass(slots=True)
class Call:
    """A tool call the model asks for; `arguments` is text, as the vendor sends it."""

    id: str
    name: str
    arguments: str


@dataclass(slots=True)
class Answer:
    """One reply of the model, before it is put in the vendor's shape."""

    content: str | None
    calls: list[Call]
    finish: str
    usage: dict[str, Any] | None


def text_of(content: Any) -> str:
    """Return a message's text, its parts joined if it comes in parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(part["text"] for part in content if isinstance(part.get("text"), str))
    return ""


def last_user(messages: list[dict[str, Any]]) -> int:
    """Return where the last user message is, or -1."""
    for place in range(len(messages) - 1, -1, -1):
        if messages[place]["role"] == "user":
            return place
    return -1


class Vendor:
    """Answers requests that are valid. Ids are counted; all else is a function of the request."""

    def __init__(self) -> None:
        self._call_numbers = itertools.count(1)

    def answer(self, request: dict[str, Any], marks: Marks, place: int) -> Answer:
        """Return the reply to `request`, whose last user message is at `place` and has `marks`."""
        messages = request["messages"]
        since = messages[place + 1 :]
        wanted = self._wanted(request, marks, since)
        if wanted:
            calls = self._calls(wanted, messages[place]["content"] if place >= 0 else "", len(messages))
            content, finish = None, "tool_calls"
        else:
            calls = []
            content, finish = _cut(_words(request, marks, since), request)
        return Answer(content, calls, finish, _usage(request, content, calls))

    def _wanted(self, request: dict[str, Any], marks: Marks, since: list[dict[str, Any]]) -> list[Wanted]:
        choice = request.get("tool_choice")
        tools = [tool["function"] for tool in request.get("tools") or ()] if choice != "none" else []
        step = sum(1 for message in since if message.get("tool_calls"))
        if step < len(marks.steps):
            return [wanted for wanted in marks.steps[step] if tools or not wanted.offered]
        if marks.loop is not None and tools:
            return [marks.loop]
        if not tools or step or marks.steps or marks.say is not None or marks.words is not None:
            return []
        if isinstance(choice, dict):
            tools = [tool for tool in tools if tool["name"] == choice["function"]["name"]]
        for tool in tools:
            arguments = call_from_text(marks.text, tool)
            if arguments is not None:
                return [Wanted(tool["name"], json.dumps(arguments))]
        return [Wanted(tools[0]["name"])] if choice == "required" or isinstance(choice, dict) else []

    def _calls(self, wanted: list[Wanted], content: Any, length: int) -> list[Call]:
        """Name the calls so that an id is not met again in a session, even after the sandbox was restarted."""
        salt = blake2b(f"{length} {text_of(content)}".encode(), digest_size=4).hexdigest()
        calls: list[Call] = []
        for want in wanted:
            call_id = calls[-1].id if want.twin else f"call_{salt}{next(self._call_numbers):06d}"
            calls.append(Call(call_id, want.name, want.arguments))
        return calls


def _words(request: dict[str, Any], marks: Marks, since: list[dict[str, Any]]) -> str:
    if marks.say is not None:
        return marks.say
    if marks.words is not None:
        return " ".join(VOCABULARY[number % len(VOCABULARY)] for number in range(marks.words))
    names = {call["id"]: call["function"]["name"] for message in since for call in message.get("tool_calls") or ()}
    results = [message for message in since if message["role"] == "tool"]
    if results:
        return " ".join(_result_in_words(names[message["tool_call_id"]], text_of(message["content"])) for message in results)
    count = sum(1 for message in request["messages"] if message["role"] == "user")
    untold = f" No tool was offered, so {marks.steps[0][0].name} was not called." if marks.steps else ""
    return f'You said: "{marks.text[:200]}". That is message {count} from you.{untold}'


def _result_in_words(name: str, text: str) -> str:
    """Return one sentence that quotes a tool's result, field by field if it is an object."""
    try:
        result = json.loads(text)
    except (ValueError, RecursionError):
        result = text
    if not isinstance(result, dict):
        return f"According to {name}: {_value_in_words(result)}."
    status = result.get("status")
    reason = next((result[key] for key in REASON_FIELDS if result.get(key)), None)
    if status in NOT_DONE or result.get("error"):
        state = status if status in NOT_DONE and status != "error" else "failed"
        return f"{name} {'is ' if state == 'unknown' else ''}{state}: {_value_in_words(reason or 'no reason given')}."
    fields = ", ".join(f"{key} is {_value_in_words(value)}" for key, value in result.items())
    return f"According to {name}: {fields or 'nothing'}."


def _value_in_words(value: Any) -> str:
    words = value if isinstance(value, str) else json.dumps(value)
    return words if len(words) <= MAX_VALUE_CHARS else words[:MAX_VALUE_CHARS] + "…"


def _cut(content: str, request: dict[str, Any]) -> tuple[str, str]:
    """Return as much of `content` as the limit on tokens allows, and the finish reason."""
    most = request.get("max_completion_tokens") or request.get("max_tokens")
    if most is not None and len(content) > 4 * most:
        return content[: 4 * most], "length"
    return content, "stop"


def _usage(request: dict[str, Any], content: str | None, calls: list[Call]) -> dict[str, Any]:
    """Count four characters as a token. All up to what the model said last is cached, once results or replies came back to it."""
    messages = request["messages"]
    sizes = [_size(message) for message in messages]
    tools = sum(24 + len(tool["function"].get("description") or "") // 4 for tool in request.get("tools") or ())
    roles = [message["role"] for message in messages]
    spoken = roles.count("assistant") + roles.count("tool") > 1
    cached = tools + sum(sizes[: len(roles) - roles[::-1].index("assistant")]) if spoken else 0
    prompt = 3 + tools + sum(sizes)
    reasoning = 16 + prompt % 48 if is_reasoning(request["model"]) else 0
    said = max(1, len(content or "") // 4) + sum(4 + (len(call.name) + len(call.arguments)) // 4 for call in calls)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": said + reasoning,
        "total_tokens": prompt + said + reasoning,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": reasoning, "audio_tokens": 0},
    }


def _size(message: dict[str, Any]) -> int:
    size = 4 + len(text_of(message.get("content"))) // 4
    for call in message.get("tool_calls") or ():
        size += 4 + (len(call["function"]["name"]) + len(call["function"]["arguments"])) // 4
    return size
