"""OpenAI's chat-completions protocol without I/O: build the request body, assemble the reply from its chunks."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from uuid_utils.compat import uuid7

from engine.enums import FinishReason, Role
from engine.errors import Malformed, ReplyLost
from engine.events import ModelReply, ToolCall, Usage
from engine.model.request import ModelRequest, PromptMessage
from engine.safe_json import clean_text, parse_foreign

MAX_TOOL_CALLS = 64
MAX_ARGUMENT_BYTES = 256 * 1024
MAX_REPORTED_TOKENS = 100_000_000
# Reasoning models take `max_completion_tokens` instead of `max_tokens`, and no temperature.
_REASONING_MODELS = ("o1", "o3", "o4", "gpt-5")
_FINISH_REASONS = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "content_filter": FinishReason.CONTENT_FILTER,
}
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_-]")


class ToolNames:
    """Maps our tool names to names that OpenAI accepts (letters, digits, `_` and `-`, at most 64 characters) and back."""

    def __init__(self, request: ModelRequest) -> None:
        self._our_names: dict[str, str] = {}
        self._wire_names: dict[str, str] = {}
        for tool in request.tools:
            self.to_wire(tool.name)

    def to_wire(self, name: str) -> str:
        """Return the wire name of our tool `name`, unique within the request."""
        if name not in self._wire_names:
            wire = plain = _NOT_IN_NAMES.sub("_", name)[:64] or "unnamed"
            count = 1
            while wire in self._our_names:
                count += 1
                wire = f"{plain[:60]}_{count}"
            self._wire_names[name], self._our_names[wire] = wire, name
        return self._wire_names[name]

    def from_wire(self, wire: str) -> str:
        """Return our name for the wire name `wire`, or `wire` itself if the model made it up."""
        return self._our_names.get(wire, wire)


def request_body(request: ModelRequest, names: ToolNames) -> dict[str, Any]:
    """Return the JSON body that requests a streamed chat completion."""
    body: dict[str, Any] = {
        "model": request.model_name,
        "messages": [_message(message, names) for message in request.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if request.model_name.rpartition("/")[2].startswith(_REASONING_MODELS):
        body["max_completion_tokens"] = request.max_tokens
    else:
        body["max_tokens"] = request.max_tokens
        body["temperature"] = request.temperature / 100
    if request.tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": names.to_wire(tool.name),
                    "description": "\n\n".join(filter(None, (tool.description, tool.usage_guidelines))),
                    "parameters": tool.parameters,
                },
            }
            for tool in request.tools
        ]
    return body


def _message(message: PromptMessage, names: ToolNames) -> dict[str, Any]:
    wire: dict[str, Any] = {"role": message.role.value, "content": message.text}
    if message.role is Role.TOOL:
        wire["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        wire["content"] = message.text or None
        wire["tool_calls"] = [
            {
                "id": call.tool_call_id,
                "type": "function",
                "function": {"name": names.to_wire(call.tool_name), "arguments": _object_text(call.arguments)},
            }
            for call in message.tool_calls
        ]
    return wire


def _object_text(arguments: str) -> str:
    """Return `arguments` if they are a JSON object, else "{}".

    Some compatible servers parse past arguments and reject the whole request if that fails.
    """
    return "{}" if _as_object(arguments) is None else arguments


def _as_object(text: str) -> dict[str, Any] | None:
    try:
        value = parse_foreign(text, max_bytes=MAX_ARGUMENT_BYTES).value
    except Malformed:
        return None
    return value if isinstance(value, dict) else None


def usage_of(reported: object) -> Usage | None:
    """Return the reported tokens by kind, or None if the report is missing or inconsistent.

    Some providers do not count reasoning tokens inside completion tokens; their total shows it.
    """
    if not isinstance(reported, Mapping):
        return None
    prompt, completion = _count(reported.get("prompt_tokens")), _count(reported.get("completion_tokens"))
    cached = _count(_detail(reported, "prompt_tokens_details", "cached_tokens"))
    reasoning = _count(_detail(reported, "completion_tokens_details", "reasoning_tokens"))
    if prompt is None or completion is None or cached is None or reasoning is None or cached > prompt:
        return None
    if reasoning and reported.get("total_tokens") == prompt + completion + reasoning:
        completion += reasoning
    if reasoning > completion:
        return None
    return Usage(input_tokens=prompt, cached_input_tokens=cached, output_tokens=completion, reasoning_tokens=reasoning)


def _detail(reported: Mapping[str, Any], details: str, kind: str) -> object:
    found = reported.get(details)
    return (found.get(kind) if isinstance(found, Mapping) else None) or 0


def _count(tokens: object) -> int | None:
    return tokens if isinstance(tokens, int) and not isinstance(tokens, bool) and 0 <= tokens <= MAX_REPORTED_TOKENS else None


@dataclass(slots=True)
class _PartialCall:
    """A tool call whose fragments are still arriving."""

    provider_id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)
    size: int = 0

    def add(self, text: str) -> None:
        # Some providers repeat the complete text at the end.
        if len(text) == self.size and text == (so_far := "".join(self.arguments)) and _as_object(so_far) is not None:
            return
        self.arguments.append(text)
        self.size += len(text)


class Assembly:
    """Builds a reply from the chunks of a stream (`add_chunk`) or from a complete response (`add_whole`).

    `peer` names the provider in error messages.
    """

    def __init__(self, names: ToolNames, model: str, peer: str) -> None:
        self._names = names
        self._model = model
        self._peer = peer
        self._text: list[str] = []
        self._refusal: list[str] = []
        self._half_character = ""
        self._calls: dict[tuple[int, int], _PartialCall] = {}
        self._usage: Usage | None = None
        self._finish: str | None = None

    @property
    def finished(self) -> bool:
        """True once a finish reason arrived; only usage may follow."""
        return self._finish is not None

    @property
    def started(self) -> bool:
        """True once text, a refusal or a tool call arrived."""
        return bool(self._text or self._refusal or self._calls)

    def add_chunk(self, chunk: object) -> str:
        """Add one chunk of a stream; return its displayable text."""
        choice = self._choice(chunk, may_be_empty=True)
        if choice is None:
            return ""
        delta = choice.get("delta")
        if delta is None:
            delta = {}
        if not isinstance(delta, Mapping):
            raise self._malformed("a chunk's delta is not an object")
        return self._add(choice, delta)

    def add_whole(self, completion: object) -> str:
        """Add a complete response; return its text."""
        choice = self._choice(completion, may_be_empty=False)
        message = choice.get("message") if choice else None
        if not isinstance(message, Mapping):
            raise self._malformed("it has no message")
        shown = self._add(choice or {}, message)
        self._finish = self._finish or "stop"
        return shown

    def reply(self) -> ModelReply:
        """Return the complete reply.

        Raises:
            ReplyLost: the stream ended without a finish reason.
            Malformed: the model finished, but there is neither text nor a tool call.
        """
        if self._finish is None:
            raise ReplyLost(f"{self._peer} ended its answer before the model had finished")
        text = clean_text("".join(self._text)) or clean_text("".join(self._refusal))
        calls = tuple(self._tool_call(self._calls[place]) for place in sorted(self._calls))
        finish = _FINISH_REASONS.get(self._finish, FinishReason.STOP)
        if calls and finish is FinishReason.STOP:
            finish = FinishReason.TOOL_CALLS
        elif not calls and finish is FinishReason.TOOL_CALLS:
            finish = FinishReason.STOP
        if not text and not calls and finish is FinishReason.STOP:
            raise self._malformed("it has neither text nor a tool call")
        return ModelReply(text, calls, finish, self._model, self._usage)

    def _choice(self, answer: object, *, may_be_empty: bool) -> Mapping[str, Any] | None:
        if not isinstance(answer, Mapping):
            raise self._malformed("it is not an object")
        self._usage = usage_of(answer.get("usage")) or self._usage
        if isinstance(model := answer.get("model"), str) and model:
            self._model = clean_text(model)[:200]
        choices = answer.get("choices")
        if choices is None and may_be_empty and "usage" in answer:
            choices = []
        if not isinstance(choices, list) or (not choices and not may_be_empty):
            raise self._malformed("it has no choices")
        for choice in choices:
            if not isinstance(choice, Mapping):
                raise self._malformed("a choice is not an object")
            if choice.get("index", 0) == 0:
                return choice
        return None

    def _add(self, choice: Mapping[str, Any], part: Mapping[str, Any]) -> str:
        for fragment in self._call_fragments(part):
            self._add_fragment(fragment)
        shown = self._add_text(self._text, part.get("content")) + self._add_text(self._refusal, part.get("refusal"))
        finish = choice.get("finish_reason")
        if isinstance(finish, str) and finish:
            self._finish = finish
        return shown

    def _add_text(self, to: list[str], text: object) -> str:
        if text is None or text == "":
            return ""
        if isinstance(text, list):  # content parts, which some compatible servers send
            text = "".join(part["text"] for part in text if isinstance(part, Mapping) and isinstance(part.get("text"), str))
        if not isinstance(text, str):
            raise self._malformed("its content is not text")
        to.append(text)
        # Keep the first half of a surrogate pair until the next chunk brings the second.
        shown, self._half_character = self._half_character + text, ""
        if shown and "\ud800" <= shown[-1] <= "\udbff":
            shown, self._half_character = shown[:-1], shown[-1]
        return clean_text(shown)

    def _call_fragments(self, part: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        fragments = part.get("tool_calls")
        if fragments is None:
            return []
        if not isinstance(fragments, list) or not all(isinstance(fragment, Mapping) for fragment in fragments):
            raise self._malformed("its tool calls are not a list of objects")
        return fragments

    def _add_fragment(self, fragment: Mapping[str, Any]) -> None:
        function = fragment.get("function")
        if function is None:
            function = {}
        if not isinstance(function, Mapping):
            raise self._malformed("a tool call has no function")
        provider_id, name, arguments = fragment.get("id"), function.get("name"), function.get("arguments")
        name = name if isinstance(name, str) else ""
        call = self._call_of(fragment.get("index"), provider_id if isinstance(provider_id, str) else "", opens=bool(name))
        call.name = call.name or name
        if isinstance(arguments, Mapping):  # against the protocol, but unambiguous
            arguments = json.dumps(arguments)
        if isinstance(arguments, str) and arguments:
            call.add(arguments)
        elif arguments is not None and not isinstance(arguments, str):
            raise self._malformed("a tool call's arguments are not text")

    def _call_of(self, index: object, provider_id: str, *, opens: bool) -> _PartialCall:
        """Return the call that a fragment belongs to: the one with its index, or without an index the last one.

        A fragment with a name and a new id opens another call.
        """
        if isinstance(index, int) and not isinstance(index, bool) and index >= 0:
            places = [place for place in self._calls if place[0] == index]
        else:
            places = list(self._calls)
            index = places[-1][0] if places else 0
        if provider_id and opens:
            same = [place for place in places if self._calls[place].provider_id in ("", provider_id)]
            place = same[-1] if same else (index, len(places))
        else:
            place = places[-1] if places else (index, 0)
        if place not in self._calls and len(self._calls) >= MAX_TOOL_CALLS:
            raise self._malformed(f"it asks for more than {MAX_TOOL_CALLS} tool calls at once")
        call = self._calls.setdefault(place, _PartialCall())
        call.provider_id = call.provider_id or provider_id
        return call

    def _tool_call(self, call: _PartialCall) -> ToolCall:
        raw = clean_text("".join(call.arguments))
        # Tools without parameters are often called with an empty string.
        arguments = _as_object(raw or "{}")
        return ToolCall(f"call_{uuid7().hex}", clean_text(self._names.from_wire(call.name)), arguments, raw)

    def _malformed(self, why: str) -> Malformed:
        return Malformed(f"{self._peer} sent an answer that violates its protocol: {why}")
