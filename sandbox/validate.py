"""Validate model requests as OpenAI does, so that tests see that the history we send is valid."""

from __future__ import annotations

import json
import re
from typing import Any

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_REASONING = re.compile(r"o\d|gpt-5")
_FIXED_TEMPERATURE = re.compile(r"o\d|gpt-5(?!\.)")


class Refused(Exception):
    """OpenAI would answer the request with 400; `param` names the invalid field."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


def parse(body: bytes) -> dict[str, Any]:
    """Parse the request in `body`.

    Raises:
        Refused: not strict JSON in UTF-8, or not an object.
    """
    try:
        document = json.loads(body.decode(), parse_constant=_no_constant)
        if b"\\u" in body:
            json.dumps(document, ensure_ascii=False).encode()  # a lone surrogate cannot be written as UTF-8
    except (ValueError, RecursionError):
        raise Refused("The body of the request could not be read as JSON.") from None
    if not isinstance(document, dict):
        raise Refused("The body of the request must be a JSON object.")
    return document


def _no_constant(name: str) -> float:
    raise ValueError(name)


def is_reasoning(model: str) -> bool:
    """Return True if this is the name of a reasoning model."""
    return _REASONING.match(model) is not None


def check(request: dict[str, Any]) -> None:
    """Check a chat completion request.

    Raises:
        Refused: OpenAI would answer 400.
    """
    model = request.get("model")
    if not isinstance(model, str) or not model:
        raise Refused("The request has no model.", "model")
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refused("'messages' must be an array with at least one message.", "messages", "empty_array")
    _check_messages(messages)
    _check_tools(request)
    _check_settings(request, model)


def _check_messages(messages: list[Any]) -> None:
    pending: list[str] = []
    ids: set[str] = set()
    for index, message in enumerate(messages):
        param = f"messages[{index}]"
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            raise Refused(f"The role {role!r} is not one of {', '.join(sorted(ROLES))}.", f"{param}.role", "invalid_value")
        if role == "tool":
            call_id = message.get("tool_call_id")
            if call_id not in pending:
                raise Refused(f"A tool message answers {call_id!r}, which no preceding tool_calls contains.", f"{param}.tool_call_id")
            pending.remove(call_id)
        elif pending:
            raise Refused(f"tool_calls must be followed by a tool message for each id; missing: {', '.join(pending)}.", param)
        elif role == "assistant" and message.get("tool_calls") is not None:
            pending = _check_calls(message["tool_calls"], f"{param}.tool_calls", ids)
            _check_content(message.get("content"), f"{param}.content", optional=True)
            continue
        _check_content(message.get("content"), f"{param}.content", optional=False)
    if pending:
        raise Refused(f"tool_calls must be followed by a tool message for each id; missing: {', '.join(pending)}.", "messages")


def _check_calls(calls: Any, param: str, ids: set[str]) -> list[str]:
    """Return the ids that await a tool message, and add them to `ids`, all that were used before."""
    if not isinstance(calls, list) or not calls:
        raise Refused("'tool_calls' must be an array with at least one call.", param, "empty_array")
    opened = []
    for call in calls:
        call_id = call.get("id") if isinstance(call, dict) else None
        if not isinstance(call_id, str) or not call_id:
            raise Refused("A tool call has no id.", param)
        if call_id in ids:
            raise Refused(f"The tool call id {call_id!r} is used twice.", param)
        function = call.get("function")
        if call.get("type") != "function" or not isinstance(function, dict):
            raise Refused("A tool call must be of type 'function'.", param)
        _check_name(function.get("name"), f"{param}.function.name")
        if not isinstance(function.get("arguments"), str):
            raise Refused("The arguments of a tool call must be a string.", f"{param}.function.arguments", "invalid_type")
        ids.add(call_id)
        opened.append(call_id)
    return opened


def _check_content(content: Any, param: str, *, optional: bool) -> None:
    if isinstance(content, str) or (optional and content is None):
        return
    parts = content if isinstance(content, list) else []
    if not parts or not all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in parts):
        raise Refused("The content of a message must be a string or an array of parts.", param, "invalid_type")


def _check_name(name: Any, param: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise Refused(f"The name {name!r} is not 1 to 64 of a-z, A-Z, 0-9, _ and -.", param, "invalid_value")


def _check_tools(request: dict[str, Any]) -> None:
    tools = request.get("tools")
    if tools is None:
        for name in ("tool_choice", "parallel_tool_calls"):
            if request.get(name) is not None:
                raise Refused(f"'{name}' is only allowed when 'tools' are given.", name)
        return
    if not isinstance(tools, list) or not tools:
        raise Refused("'tools' must be an array with at least one tool.", "tools", "empty_array")
    names = set()
    for index, tool in enumerate(tools):
        param = f"tools[{index}]"
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or tool.get("type") != "function":
            raise Refused("A tool must be of type 'function'.", f"{param}.type", "invalid_value")
        _check_name(function.get("name"), f"{param}.function.name")
        parameters = function.get("parameters", {})
        if not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
            raise Refused("The parameters of a tool must be a JSON Schema of type 'object'.", f"{param}.function.parameters")
        names.add(function["name"])
    choice = request.get("tool_choice")
    if isinstance(choice, dict):
        function = choice.get("function")
        if not isinstance(function, dict) or function.get("name") not in names:
            raise Refused("'tool_choice' names a tool that is not among 'tools'.", "tool_choice")
    elif choice not in (None, "auto", "none", "required"):
        raise Refused("'tool_choice' must be 'none', 'auto', 'required' or name a tool.", "tool_choice", "invalid_value")


def _check_settings(request: dict[str, Any], model: str) -> None:
    temperature = request.get("temperature")
    if temperature is not None:
        if isinstance(temperature, bool) or not isinstance(temperature, int | float):
            raise Refused("'temperature' must be a number.", "temperature", "invalid_type")
        if not 0 <= temperature <= 2:
            raise Refused("'temperature' must be from 0 to 2.", "temperature", "decimal_out_of_range")
        if temperature != 1 and _FIXED_TEMPERATURE.match(model):
            raise Refused("This model supports only the default temperature, 1.", "temperature", "unsupported_value")
    for name in ("max_tokens", "max_completion_tokens"):
        most = request.get(name)
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
            raise Refused(f"'{name}' must be an integer of at least 1.", name, "integer_below_min_value")
    if request.get("max_tokens") is not None and is_reasoning(model):
        raise Refused("This model requires 'max_completion_tokens' instead of 'max_tokens'.", "max_tokens", "unsupported_parameter")
    if request.get("stream") not in (None, True, False):
        raise Refused("'stream' must be true or false.", "stream", "invalid_type")
    options = request.get("stream_options")
    if options is not None and (not isinstance(options, dict) or not request.get("stream")):
        raise Refused("'stream_options' is only allowed when 'stream' is true.", "stream_options")
