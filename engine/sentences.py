"""Sentences for people and for the model, by the codes that SQL stores.

A SQL function stores a code, and beside it the numbers and names that its sentence needs: in an event's content as `text_code` or
`error_code`, elsewhere as the code alone or as an object `{"code": …, …}`. Rows of earlier versions hold the sentence itself; these
functions return such a sentence as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

RESULT_LOST = "It was started and its result was lost: it may or may not have happened."

Fields = Mapping[str, Any]


def sentence(stored: object) -> str | None:
    """Return the sentence for `stored`: a code, an object with a code (also as JSON text), or a text that is a sentence already."""
    if isinstance(stored, str):
        return PLAIN.get(stored) or _of_json(stored) or stored
    if isinstance(stored, Mapping):
        return SENTENCES[stored["code"]](stored)
    return None


def with_sentences(content: dict[str, Any]) -> dict[str, Any]:
    """Return an event's content with `text` and `error` in place of `text_code` and `error_code`."""
    for name in ("text", "error"):
        if f"{name}_code" in content:
            content = {key: value for key, value in content.items() if key != f"{name}_code"} | {name: sentence(content[f"{name}_code"])}
    return content


def _of_json(text: str) -> str | None:
    """Return the sentence for the JSON of an object with a code, or None. Other texts may be JSON too, for example a provider's error."""
    if not text.startswith("{"):
        return None
    try:
        return sentence(json.loads(text))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _attempts_spent(fields: Fields) -> str:
    said = f"claimed {fields['attempts']} times without an outcome"
    last = fields.get("last") or {}
    if last.get("error_class"):
        said += f"; last: {last['error_class']}"
        detail = sentence(last.get("detail"))
        said += f", {detail}" if detail else ""
    return said


def _budget_spent(fields: Fields) -> str:
    cap, spent, reserved, requested = (_amount(fields[name], fields["unit"]) for name in ("cap", "spent", "reserved", "requested"))
    period = "daily" if fields["period"] == "day" else "total"
    return f"The {fields['scope']}'s {period} budget of {cap} is spent: {spent} spent, {reserved} reserved, {requested} more wanted."


def _amount(number: str, unit: str) -> str:
    return f"${number}" if unit == "usd" else f"{number} tokens"


def _fixed(text: str) -> Callable[[Fields], str]:
    return lambda _: text


PLAIN = {
    # text of the status_update that ends a turn
    "reply_cancelled": "The reply was cancelled.",
    "not_answered": "This message could not be answered.",
    # error of a tool_result, and of the tool call's row
    "result_lost": RESULT_LOST,
    "not_made": "It was not made: the turn ended first.",
    "turn_ended": "the turn ended",
    # detail of a claim that was lost
    "waited_for_model": "while it waited for the model",
    # why no budget allows a model call
    "budget_refused": "A budget is spent.",
}
SENTENCES: Mapping[Any, Callable[[Fields], str]] = {
    **{code: _fixed(text) for code, text in PLAIN.items()},
    "waited_for_tools": lambda fields: f"while it waited for {', '.join(fields['tools'])}",
    "attempts_spent": _attempts_spent,
    "budget_spent": _budget_spent,
    "budget_without_price": lambda fields: f"The {fields['scope']} has a budget in dollars, and no price is known for this model.",
}
"""By code, a function of the object it is stored in."""
