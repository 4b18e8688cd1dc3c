"""Find a tool's arguments in a text without markers: the tool is called if all its required parameters are found."""

from __future__ import annotations

import re
from typing import Any

_NUMBER = re.compile(r"(?<![\w.])-?\d{1,15}(?:\.\d{1,6})?(?![\w]|\.\d)")
_QUOTED = re.compile(r"\"([^\"]+)\"|“([^”]+)”|'([^']+)'(?!\w)|`([^`]+)`")
_NAME = re.compile(r"(?<![.!?…]\s)(?<!^)\b[A-Z][\w-]+")


class _Text:
    """A customer's text. Each number, quotation or name in it is used for one argument only."""

    def __init__(self, text: str) -> None:
        self.plain = text
        self.numbers = _NUMBER.findall(text)
        self.phrases = ["".join(groups) for groups in _QUOTED.findall(text)]
        self.names = [name for name in _NAME.findall(text) if name != "I"]

    def find(self, schema: Any) -> Any:
        """Return a value that fits `schema`, or None."""
        if not isinstance(schema, dict):
            return None
        if isinstance(schema.get("enum"), list):
            return next((value for value in schema["enum"] if _occurs(value, self.plain)), None)
        types = schema.get("type")
        for json_type in types if isinstance(types, list) else [types]:
            value = self._of_type(json_type)
            if value is not None:
                return value
        return None

    def _of_type(self, json_type: Any) -> Any:
        if json_type == "integer":
            whole = next((number for number in self.numbers if "." not in number), None)
            if whole is not None:
                self.numbers.remove(whole)
                return int(whole)
        elif json_type == "number" and self.numbers:
            number = self.numbers.pop(0)
            return float(number) if "." in number else int(number)
        elif json_type == "string":
            found = self.phrases or self.names
            return found.pop(0) if found else None
        return None


def _occurs(value: Any, text: str) -> bool:
    return isinstance(value, str) and re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text, re.IGNORECASE) is not None


def call_from_text(text: str, tool: dict[str, Any]) -> dict[str, Any] | None:
    """Return the arguments for `tool` that are found in `text`, or None if a required one is missing.

    A tool without required parameters is called only if the text contains its name.
    """
    schema = tool.get("parameters") or {}
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, dict) or not isinstance(required, list) or not required:
        return {} if _occurs(tool["name"], text) else None
    found = _Text(text)
    arguments = {}
    for name in required:
        value = found.find(properties.get(name))
        if value is None:
            return None
        arguments[name] = value
    return arguments
