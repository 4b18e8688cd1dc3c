"""Markers in a customer's text, by which a test says what the model shall do."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from sandbox.faults import Wish, read_wish

MARKERS = {
    "[[call NAME {json}]]": "call a tool; several make parallel calls in one reply",
    "[[calls N NAME {json}]]": "call a tool N times in one reply",
    "[[then NAME {json}]]": "call a tool in the next step, after the results; each one is a further step",
    "[[loop NAME {json}]]": "call a tool in every step, for ever",
    "[[same-id NAME {json}]]": "two parallel calls under one id",
    "[[bad-arguments NAME]]": "call a tool with arguments that are not JSON",
    "[[unknown-tool]]": "call a tool that was not offered",
    "[[say TEXT]]": "answer TEXT exactly",
    "[[words N]]": "answer N words, each a chunk of its own in a stream",
    "[[latency MS]]": "wait before answering",
    "[[token-ms MS]]": "wait between the chunks of a stream",
    "[[fault NAME]]": "spoil the first request with this text; xN or x* after the name: the first N, or all; "
    "after K: spare the first K; several take turns",
}

MAX_WORDS = 20_000
MAX_CALLS = 1_000
NOT_JSON = '{"order": 41, oops'
_OPENING = re.compile(r"\[\[(calls|call|then|loop|same-id|bad-arguments|unknown-tool|say|words|latency|token-ms|fault)(?=[\s\]]|$)\s*")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_decoder = json.JSONDecoder()


class BadMarker(ValueError):
    """A marker is begun but cannot be read; a typing error in a test shall not pass for a customer's words."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A tool call a marker asks for; with `twin` it has the same id as the call before it."""

    name: str
    arguments: str = "{}"
    twin: bool = False
    offered: bool = True


@dataclass(slots=True)
class Marks:
    """A text's markers, and the text without them. `steps[0]` is what the first step calls, and so on."""

    text: str
    steps: list[list[Wanted]] = field(default_factory=list)
    loop: Wanted | None = None
    say: str | None = None
    words: int | None = None
    latency_s: float | None = None
    token_s: float | None = None
    faults: list[Wish] = field(default_factory=list)


def read(text: str) -> Marks:
    """Return the markers in `text`.

    Raises:
        BadMarker: one of them is misspelt.
    """
    if "[[" not in text:
        return Marks(text)
    marks = Marks("")
    first: list[Wanted] = []
    later: list[list[Wanted]] = []
    kept: list[str] = []
    at = 0
    while opening := _OPENING.search(text, at):
        kept.append(text[at : opening.start()])
        at = _one(opening[1], text, opening.end(), marks, first, later)
    kept.append(text[at:])
    marks.text = " ".join("".join(kept).split())
    marks.steps = ([first] if first else []) + later
    return marks


def _one(word: str, text: str, at: int, marks: Marks, first: list[Wanted], later: list[list[Wanted]]) -> int:
    """Read the rest of one marker into `marks`, `first` or `later`, and return where it ends."""
    end = text.find("]]", at)
    if end < 0:
        raise BadMarker(f"The marker [[{word} has no end.")
    inside = text[at:end].strip()
    match word:
        case "say":
            marks.say = inside
        case "words":
            marks.words = int(_number(word, inside, MAX_WORDS))
        case "latency":
            marks.latency_s = _number(word, inside, 3_600_000) / 1000
        case "token-ms":
            marks.token_s = _number(word, inside, 3_600_000) / 1000
        case "fault":
            try:
                marks.faults.append(read_wish(inside))
            except ValueError as problem:
                raise BadMarker(str(problem)) from None
        case "unknown-tool":
            first.append(Wanted("no_such_tool", '{"why":"not offered"}', offered=False))
        case "bad-arguments":
            name, at = _name(word, text, at)
            first.append(Wanted(name, NOT_JSON))
        case _:
            return _calls(word, text, at, marks, first, later)
    return end + 2


def _calls(word: str, text: str, at: int, marks: Marks, first: list[Wanted], later: list[list[Wanted]]) -> int:
    times = 1
    if word == "calls":
        number, _, _ = text[at:].partition(" ")
        times = int(_number(word, number, MAX_CALLS))
        at += len(number) + 1
    name, at = _name(word, text, at)
    arguments, at = _arguments(word, text, at)
    wanted = Wanted(name, arguments)
    if word == "then":
        later.append([wanted])
    elif word == "loop":
        marks.loop = wanted
    elif word == "same-id":
        first += [wanted, Wanted(name, arguments, twin=True)]
    else:
        first += [wanted] * times
    return at


def _name(word: str, text: str, at: int) -> tuple[str, int]:
    found = _NAME.match(text, at)
    if found is None:
        raise BadMarker(f"The marker [[{word} names no tool.")
    return found[0], found.end()


def _arguments(word: str, text: str, at: int) -> tuple[str, int]:
    """Read the optional JSON object and the end of a marker; the object itself may hold `]]`."""
    at = _skip_space(text, at)
    arguments = "{}"
    if text.startswith("{", at):
        try:
            value, at = _decoder.raw_decode(text, at)
        except ValueError:
            raise BadMarker(f"The arguments of the marker [[{word} are not JSON.") from None
        arguments = json.dumps(value)
        at = _skip_space(text, at)
    if not text.startswith("]]", at):
        raise BadMarker(f"The marker [[{word} has no end after its arguments.")
    return arguments, at + 2


def _skip_space(text: str, at: int) -> int:
    while text[at : at + 1].isspace():
        at += 1
    return at


def _number(word: str, text: str, most: int) -> float:
    try:
        number = float(text)
    except ValueError:
        raise BadMarker(f"The marker [[{word} wants a number, not {text!r}.") from None
    if not 0 <= number <= most:
        raise BadMarker(f"The number of the marker [[{word} must be from 0 to {most}.")
    return number
