"""Markers such as `[[call NAME {json}]]` in a customer's text tell the fake model what to do."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from sandbox.faults import FaultRequest, parse_fault

MARKERS = {
    "[[call NAME {json}]]": "call a tool; several make parallel calls in one reply",
    "[[calls N NAME {json}]]": "call a tool N times in one reply",
    "[[then NAME {json}]]": "call a tool in the next step, after the results; each marker is one more step",
    "[[loop NAME {json}]]": "call a tool in every step, endlessly",
    "[[same-id NAME {json}]]": "two parallel calls under one id",
    "[[bad-arguments NAME]]": "call a tool with arguments that are not JSON",
    "[[unknown-tool]]": "call a tool that was not offered",
    "[[say TEXT]]": "answer TEXT exactly",
    "[[words N]]": "answer N words, each a chunk of its own in a stream",
    "[[latency MS]]": "wait before answering",
    "[[token-ms MS]]": "wait between the chunks of a stream",
    "[[fault NAME]]": "the first request with this text gets the fault; xN or x* after the name: the first N, or all; "
    "after K: not the first K; several faults follow each other",
}

MAX_WORDS = 20_000
MAX_CALLS = 1_000
NOT_JSON = '{"order": 41, oops'
_OPENING = re.compile(r"\[\[(calls|call|then|loop|same-id|bad-arguments|unknown-tool|say|words|latency|token-ms|fault)(?=[\s\]]|$)\s*")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_decoder = json.JSONDecoder()


class BadMarker(ValueError):
    """A marker cannot be parsed. Raised so that a typing error in a test does not pass as a customer's text."""


@dataclass(frozen=True, slots=True)
class WantedCall:
    """A tool call that a marker asks for. `twin`: it gets the same id as the call before it."""

    name: str
    arguments: str = "{}"
    twin: bool = False
    offered: bool = True


@dataclass(slots=True)
class Markers:
    """The markers of a text, and the text without them. `steps[0]` are the calls of the first step."""

    text: str
    steps: list[list[WantedCall]] = field(default_factory=list)
    loop: WantedCall | None = None
    say: str | None = None
    words: int | None = None
    latency_s: float | None = None
    token_s: float | None = None
    faults: list[FaultRequest] = field(default_factory=list)


def parse(text: str) -> Markers:
    """Parse the markers in `text`.

    Raises:
        BadMarker: a marker is invalid.
    """
    if "[[" not in text:
        return Markers(text)
    markers = Markers("")
    first: list[WantedCall] = []
    later: list[list[WantedCall]] = []
    plain: list[str] = []
    at = 0
    while opening := _OPENING.search(text, at):
        plain.append(text[at : opening.start()])
        at = _parse_marker(opening[1], text, opening.end(), markers, first, later)
    plain.append(text[at:])
    markers.text = " ".join("".join(plain).split())
    markers.steps = ([first] if first else []) + later
    return markers


def _parse_marker(word: str, text: str, at: int, markers: Markers, first: list[WantedCall], later: list[list[WantedCall]]) -> int:
    """Parse the rest of one marker into `markers`, `first` or `later`; return the position after it."""
    end = text.find("]]", at)
    if end < 0:
        raise BadMarker(f"The marker [[{word} has no end.")
    inside = text[at:end].strip()
    match word:
        case "say":
            markers.say = inside
        case "words":
            markers.words = int(_number(word, inside, MAX_WORDS))
        case "latency":
            markers.latency_s = _number(word, inside, 3_600_000) / 1000
        case "token-ms":
            markers.token_s = _number(word, inside, 3_600_000) / 1000
        case "fault":
            try:
                markers.faults.append(parse_fault(inside))
            except ValueError as problem:
                raise BadMarker(str(problem)) from None
        case "unknown-tool":
            first.append(WantedCall("no_such_tool", '{"why":"not offered"}', offered=False))
        case "bad-arguments":
            name, at = _name(word, text, at)
            first.append(WantedCall(name, NOT_JSON))
        case _:
            return _parse_calls(word, text, at, markers, first, later)
    return end + 2


def _parse_calls(word: str, text: str, at: int, markers: Markers, first: list[WantedCall], later: list[list[WantedCall]]) -> int:
    times = 1
    if word == "calls":
        number, _, _ = text[at:].partition(" ")
        times = int(_number(word, number, MAX_CALLS))
        at += len(number) + 1
    name, at = _name(word, text, at)
    arguments, at = _arguments(word, text, at)
    wanted = WantedCall(name, arguments)
    if word == "then":
        later.append([wanted])
    elif word == "loop":
        markers.loop = wanted
    elif word == "same-id":
        first += [wanted, WantedCall(name, arguments, twin=True)]
    else:
        first += [wanted] * times
    return at


def _name(word: str, text: str, at: int) -> tuple[str, int]:
    found = _NAME.match(text, at)
    if found is None:
        raise BadMarker(f"The marker [[{word} has no tool name.")
    return found[0], found.end()


def _arguments(word: str, text: str, at: int) -> tuple[str, int]:
    """Parse the optional JSON object and the end of a marker. The object may contain `]]`."""
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
        raise BadMarker(f"The marker [[{word} needs a number, not {text!r}.") from None
    if not 0 <= number <= most:
        raise BadMarker(f"The number of the marker [[{word} must be from 0 to {most}.")
    return number
