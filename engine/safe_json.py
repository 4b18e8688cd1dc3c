"""Checks and repairs JSON and text from outside, so that Postgres can store it as jsonb and Python can read it back.

Size is checked first, then depth, then the parsed value, each in linear time. A value that Postgres stores and Python cannot read back
would break every later read of its session. Input of clients is refused if it is not storable. Answers of providers and tools have been
paid for, so they are repaired (U+FFFD replaces U+0000 and halves of surrogate pairs) and marked.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from engine.errors import Malformed, Rejected

MAX_DEPTH = 64
MAX_KEYS = 10_000
MAX_NODES = 500_000
# Beyond this, JavaScript and many JSON readers silently change an integer.
MAX_INTEGER = 2**53
REPLACEMENT = "\ufffd"

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_NOT_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))
_OPENING = b"[{"


@dataclass(frozen=True, slots=True)
class Parsed:
    """A JSON value from outside. `sanitised`: part of it was replaced."""

    value: Any
    sanitised: bool = False


def clean_text(text: str) -> str:
    """Return `text` in a form that Postgres and UTF-8 accept: surrogate pairs joined, lone halves and U+0000 replaced by U+FFFD."""
    if _UNSTORABLE.search(text) is None:
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").replace("\x00", REPLACEMENT)


def parse_foreign(raw: bytes | str, *, max_bytes: int, peer: str = "The other side", repair: bool = True) -> Parsed:
    """Return the JSON value of a provider's or a tool's answer; text that is not storable is repaired.

    Integers beyond ±2^53 become strings. Without `repair` the text is unchanged: a piece of a stream may end within a surrogate pair, and
    the caller calls `clean_text` on the joined text.

    Raises:
        Malformed: not JSON, NaN, a number too large, nested deeper than 64, too many keys or bytes.
    """

    def refuse(why: str) -> NoReturn:
        raise Malformed(f"{peer} sent JSON that cannot be used: {why}")

    sanitised = False
    if isinstance(raw, str):
        text = raw
    else:
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError:
            text, sanitised = raw.decode("utf-8-sig", "replace"), True
    value = _parse(text, len(raw), max_bytes, refuse)
    if repair and ("\\u" in text or (isinstance(raw, str) and _UNSTORABLE.search(raw))):
        value, repaired = _clean(value)
        sanitised = sanitised or repaired
    return Parsed(value, sanitised)


def parse_client(raw: bytes | str, *, max_bytes: int, where: str = "The body") -> Any:
    """Return the JSON value that a client sent. Integers beyond ±2^53 become strings.

    Raises:
        Rejected: it is not JSON, or not storable; the message says what is wrong and where.
    """

    def refuse(why: str) -> NoReturn:
        raise Rejected(f"{where} is not acceptable JSON: {why}.")

    if isinstance(raw, bytes):
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            refuse(f"byte {error.start} is not UTF-8")
    else:
        text = raw
    value = _parse(text, len(raw), max_bytes, refuse)
    check_json_value(value, where)
    return value


def check_json_value(value: object, where: str = "The value") -> None:
    """Return if a parsed `value` can be stored as jsonb and read back. Its depth cannot overflow the stack.

    Raises:
        Rejected: too deep, too many keys or values, or a part that is not JSON or not storable.
    """
    if problem := find_unstorable(value):
        place, why = problem
        raise Rejected(f"{where}{place} {why}.")


def find_unstorable(value: object, *, max_depth: int = MAX_DEPTH, max_nodes: int = MAX_NODES) -> tuple[str, str] | None:
    """Return the path (like `["a"][3]`) and the problem of the first part of `value` that cannot be stored, or None.

    A value that is shared is counted each time, so a small object that would dump to gigabytes is detected in bounded time.
    """
    nodes = keys = 0
    stack: list[tuple[object, str, int]] = [(value, "", 0)]
    while stack:
        item, place, depth = stack.pop()
        nodes += 1
        if nodes > max_nodes:
            return "", f"has more than {max_nodes:,} values"
        if isinstance(item, str):
            if why := _text_problem(item):
                return place, why
        elif isinstance(item, bool) or item is None:
            continue
        elif isinstance(item, int):
            if not -MAX_INTEGER <= item <= MAX_INTEGER:
                return place, "is an integer beyond 2^53; send it as a string"
        elif isinstance(item, float):
            if not math.isfinite(item):
                return place, "is not a finite number"
        elif isinstance(item, (dict, list)):
            if depth >= max_depth:
                return "", f"is nested deeper than {max_depth} levels"
            if nodes + len(stack) + len(item) > max_nodes:
                return "", f"has more than {max_nodes:,} values"
            if isinstance(item, list):
                stack.extend((element, f"{place}[{index}]", depth + 1) for index, element in enumerate(item))
                continue
            keys += len(item)
            if keys > MAX_KEYS:
                return "", f"has more than {MAX_KEYS:,} keys"
            for key, element in item.items():
                if not isinstance(key, str):
                    return place, "has a key that is not text"
                if why := _text_problem(key):
                    return place, f"has a key that {why}"
                stack.append((element, f"{place}[{json.dumps(key[:40])}]" if len(place) < 200 else place, depth + 1))
        else:
            return place, f"is not JSON but {type(item).__name__}"
    return None


def _text_problem(text: str) -> str | None:
    found = _UNSTORABLE.search(text)
    if found is None:
        return None
    return "contains the character U+0000" if found.group() == "\x00" else f"contains half of a surrogate pair (U+{ord(found.group()):04X})"


def _parse(text: str, size: int, max_bytes: int, refuse: Callable[[str], NoReturn]) -> Any:
    if size > max_bytes:
        refuse(f"it is longer than {max_bytes} bytes")
    if _depth_exceeds(text, MAX_DEPTH):
        refuse(f"it is nested deeper than {MAX_DEPTH} levels")

    try:
        value = _DECODER.decode(text)
    except _Unusable as error:
        refuse(str(error))
    except json.JSONDecodeError as error:
        problem = error.msg.removesuffix(" at").removesuffix(":")
        refuse(f"{problem[0].lower()}{problem[1:]} at character {error.pos}")
    except ValueError:
        refuse("it is not JSON")
    if text.count(":") > MAX_KEYS and _count_keys(value) > MAX_KEYS:
        refuse(f"it has more than {MAX_KEYS:,} keys")
    return value


class _Unusable(ValueError):
    """A value that the grammar of JSON or Python allows and that cannot be stored."""


def _constant(name: str) -> NoReturn:
    raise _Unusable(f"{name} is not a number")


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise _Unusable("a number is too large")
    return value


def _integer(digits: str) -> int | str:
    if len(digits) > 17:
        return digits
    value = int(digits)
    return value if -MAX_INTEGER <= value <= MAX_INTEGER else digits


_DECODER = json.JSONDecoder(parse_constant=_constant, parse_float=_float, parse_int=_integer)


def _depth_exceeds(text: str, limit: int) -> bool:
    """Return True if brackets outside of strings nest deeper than `limit`. Linear, and cheap for small documents."""
    if text.count("[") + text.count("{") <= limit:
        return False
    # Without escapes every quote opens or closes a string, so the parts with even indexes are outside of strings.
    raw = text.encode("utf-8", "replace").replace(b"\\\\", b"").replace(b'\\"', b"")
    depth = 0
    for bracket in b"".join(raw.split(b'"')[::2]).translate(None, _NOT_BRACKETS):
        depth += 1 if bracket in _OPENING else -1
        if depth > limit:
            return True
    return False


def _count_keys(value: Any) -> int:
    """Return the number of keys of all objects in `value`, whose depth has been checked."""
    if isinstance(value, dict):
        return len(value) + sum(map(_count_keys, value.values()))
    return sum(map(_count_keys, value)) if isinstance(value, list) else 0


def _clean(value: Any) -> tuple[Any, bool]:
    """Return `value` with every text cleaned, and True if that changed it. Its depth has been checked."""
    if isinstance(value, str):
        cleaned = clean_text(value)
        return cleaned, cleaned is not value
    if isinstance(value, list):
        items = [_clean(item) for item in value]
        return [item for item, _ in items], any(changed for _, changed in items)
    if isinstance(value, dict):
        pairs = [(_clean(key), _clean(item)) for key, item in value.items()]
        return {key: item for (key, _), (item, _) in pairs}, any(key[1] or item[1] for key, item in pairs)
    return value, False
