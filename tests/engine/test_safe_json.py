"""Every value that safe_json accepts can be dumped strictly, loaded again, and stored by Postgres as UTF-8."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import Malformed, Rejected
from engine.safe_json import MAX_DEPTH, MAX_KEYS, check_json_value, clean_text, find_unstorable, parse_client, parse_foreign

LIMIT = 1_000_000


def assert_storable(value: Any) -> None:
    """Assert the properties that jsonb and a later read need."""
    dumped = json.dumps(value, allow_nan=False, ensure_ascii=False)
    dumped.encode("utf-8")
    assert "\\u0000" not in json.dumps(value)
    assert json.loads(dumped) == value
    check_json_value(value)


wild_text = st.text(alphabet=st.characters(codec=None) | st.sampled_from("\x00\ud800\udc00\ud83d\ude00"))
wild_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | wild_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(wild_text, inner, max_size=4),
    max_leaves=20,
)


@given(wild_json)
def test_accepted_values_are_storable(value: Any):
    raw = json.dumps(value)
    try:
        parsed = parse_foreign(raw, max_bytes=LIMIT)
    except Malformed:
        assert "NaN" in raw or "Infinity" in raw
    else:
        assert_storable(parsed.value)
    try:
        assert_storable(parse_client(raw.encode(), max_bytes=LIMIT))
    except Rejected:
        assert find_unstorable(value) is not None


@given(st.text() | st.binary())
def test_no_input_raises_another_error(raw: str | bytes):
    with contextlib.suppress(Malformed):
        assert_storable(parse_foreign(raw, max_bytes=LIMIT).value)
    with contextlib.suppress(Rejected):
        assert_storable(parse_client(raw, max_bytes=LIMIT))


@given(wild_json)
def test_clean_value_is_unchanged(value: Any):
    if find_unstorable(value) is None:
        parsed = parse_foreign(json.dumps(value).encode(), max_bytes=LIMIT)
        assert parsed.value == value
        assert not parsed.sanitised


@given(wild_text)
def test_clean_text(text: str):
    cleaned = clean_text(text)
    cleaned.encode("utf-8")
    assert "\x00" not in cleaned
    assert clean_text(cleaned) is cleaned
    if find_unstorable(text) is None:
        assert cleaned is text


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a\x00b", "a\ufffdb"),
        ("\ud83d\ude00", "\U0001f600"),
        ("x\ud83d", "x\ufffd"),
        ("\ude00x", "\ufffdx"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
        ("é😀", "é😀"),
    ],
)
def test_clean_text_by_example(text: str, cleaned: str):
    assert clean_text(text) == cleaned


@pytest.mark.parametrize(
    ("raw", "value", "sanitised"),
    [
        (b'{"a":"\\u0000"}', {"a": "\ufffd"}, True),
        (b'{"\\u0000":"\\ud83d"}', {"\ufffd": "\ufffd"}, True),
        (b'"\\ud83d\\ude00"', "\U0001f600", False),
        (b"\xef\xbb\xbf[1]", [1], False),
        (b'"\xff"', "\ufffd", True),
        (b"[9007199254740992,9007199254740993,-9007199254740993]", [2**53, "9007199254740993", "-9007199254740993"], False),
        (b"[" + b"9" * 5000 + b"]", ["9" * 5000], False),
        (b"[1e-400, 1.5]", [0.0, 1.5], False),
    ],
)
def test_faulty_json_of_providers_is_repaired(raw: bytes, value: Any, sanitised: bool):
    parsed = parse_foreign(raw, max_bytes=LIMIT)
    assert parsed.value == value
    assert parsed.sanitised is sanitised
    assert_storable(parsed.value)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"<html>",
        b"NaN",
        b"[Infinity]",
        b"[-Infinity]",
        b"1e400",
        b"[-1e999]",
        b"[" * 65 + b"]" * 65,
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b"[" * 100_000,
        b'"' + b"x" * LIMIT,
    ],
)
def test_irreparable_json_is_refused(raw: bytes):
    with pytest.raises(Malformed):
        parse_foreign(raw, max_bytes=LIMIT)
    with pytest.raises(Rejected):
        parse_client(raw, max_bytes=LIMIT)


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b'{"a":["x","\\u0000"]}', 'The body["a"][1] contains the character U+0000.'),
        (b'{"a":"\\ud83d"}', 'The body["a"] contains half of a surrogate pair (U+D83D).'),
        (b'{"a\\u0000":1}', "The body has a key that contains the character U+0000."),
        (b'{"a":"\xff"}', "The body is not acceptable JSON: byte 6 is not UTF-8."),
        (b"[1,]", "The body is not acceptable JSON: expecting value at character 3."),
        (b"[NaN]", "The body is not acceptable JSON: NaN is not a number."),
    ],
)
def test_errors_name_the_fault_and_its_place(raw: bytes, sentence: str):
    with pytest.raises(Rejected) as caught:
        parse_client(raw, max_bytes=LIMIT)
    assert str(caught.value) == sentence


def test_limits_are_exact():
    assert parse_foreign(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, max_bytes=LIMIT)
    check_json_value(parse_client(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, max_bytes=LIMIT))
    assert parse_foreign(b"[]" + b" " * (LIMIT - 2), max_bytes=LIMIT).value == []
    many = {str(n): 1 for n in range(MAX_KEYS)}
    assert parse_foreign(json.dumps(many), max_bytes=LIMIT).value == many
    for too_many in (many | {"one more": 1}, [{"a": [{"b": n} for n in range(MAX_KEYS)]}]):
        with pytest.raises(Malformed, match="keys"):
            parse_foreign(json.dumps(too_many), max_bytes=LIMIT)
        with pytest.raises(Rejected, match="keys"):
            check_json_value(too_many)


def test_brackets_within_texts_are_not_depth():
    for text in ("[" * 500, '"[' * 500, "\\[" * 500, "\\\\" + "[" * 100, '\\"' + "{" * 100):
        assert parse_foreign(json.dumps([text, text]), max_bytes=LIMIT).value == [text, text]


def test_quotes_and_backslashes_without_end_are_read_in_linear_time():
    for raw in (b'"' + b'\\"[' * 100_000, b'"\\' * 100_000, b'{"' * 100_000, b"[" * 64 + b'"' * 100_000):
        with pytest.raises(Malformed):
            parse_foreign(raw, max_bytes=LIMIT)


def test_parsed_values_of_any_depth_are_judged_without_recursion():
    deep: Any = []
    for _ in range(200_000):
        deep = [deep]
    with pytest.raises(Rejected, match="nested deeper than 64"):
        check_json_value(deep, "metadata")
    while deep:  # taken apart by hand, because freeing it would recurse
        deep = deep.pop()
    for value in (float("nan"), float("inf"), 2**53 + 1, {1: "a"}, ("tuple",), b"bytes", {"a": object()}):
        with pytest.raises(Rejected):
            check_json_value({"metadata": value} if not isinstance(value, dict) else value)


def test_a_small_object_that_dumps_to_gigabytes_is_refused():
    value: Any = ["x"]
    for _ in range(40):
        value = [value, value]
    assert find_unstorable(value) is not None
