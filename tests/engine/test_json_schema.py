"""Schemas and mappings of tenants: accepted ones behave as specified, dangerous ones are refused with a sentence."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import Rejected
from engine.safe_json import find_unstorable
from engine.tools.json_schema import apply_mapping, check_mapping, check_schema, validate

ORDER = {
    "type": "object",
    "properties": {"order": {"type": "integer", "minimum": 1}, "notes": {"type": "array", "items": {"$ref": "#/$defs/note"}}},
    "required": ["order"],
    "additionalProperties": False,
    "$defs": {"note": {"type": "string", "maxLength": 5}},
}
TREE = {
    "type": "object",
    "properties": {
        "left": {"$ref": "#"},
        "right": {"$ref": "#"},
        "kids": {"type": "array", "items": {"anyOf": [{"type": "null"}, {"type": "integer"}]}},
    },
}


def billion(levels: int) -> dict[str, Any]:
    names = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(levels)}
    return {"type": "object", "$ref": "#/$defs/d0", "$defs": names | {f"d{levels}": {"type": "object"}}}


def test_failures_are_sentences_with_places():
    assert validate(ORDER, {"order": 41}) == []
    assert sorted(validate(ORDER, {"order": 0, "notes": ["ok", "too long"], "more": 1})) == [
        "Additional properties are not allowed ('more' was unexpected)",
        'notes[1]: "too long" is longer than 5 characters',
        "order: 0 is less than the minimum of 1",
    ]
    assert any('"order" is a required property' in failure for failure in validate(ORDER, {}))
    assert any("object" in failure for failure in validate(ORDER, []))
    assert len(validate({"items": {"type": "string"}}, [1] * 100)) == 10
    assert all(len(failure) < 500 for failure in validate({"enum": ["x" * 2000]}, "y" * 2000))


@pytest.mark.parametrize(
    "schema",
    [
        ORDER,
        TREE,
        {"type": "object"},
        {"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object"},
        {"$schema": "http://json-schema.org/draft-07/schema#", "type": "object"},
        {"$id": "https://example.com/order", "type": "object", "properties": {"a": {"$ref": "#/properties/b"}, "b": {}}},
        {"type": "object", "properties": {"$ref": {"type": "string"}, "a": {"const": {"$ref": "http://127.0.0.1/"}}}},
        billion(5),
    ],
)
def test_good_schemas(schema: dict[str, Any]):
    check_schema(schema, "parameters")


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ([], "must be a JSON Schema object"),
        (None, "must be a JSON Schema object"),
        (True, "must be a JSON Schema object"),
        ({}, '"type" must be "object"'),
        ({"type": "array"}, '"type" must be "object"'),
        ({"type": ["object", "null"]}, '"type" must be "object"'),
        ({"type": "object", "properties": 3}, "not a valid JSON Schema"),
        ({"type": "object", "required": "a"}, "not a valid JSON Schema"),
        ({"type": "object", "properties": {"a": {"pattern": "("}}}, "not a valid JSON Schema"),
        ({"type": "object", "$schema": "http://127.0.0.1:1/x"}, "not a valid JSON Schema"),
        ({"type": "object", "$ref": "http://127.0.0.1:1/x.json"}, "only references into the same schema"),
        ({"type": "object", "properties": {"a": {"$ref": "other.json"}}}, "only references"),
        ({"type": "object", "allOf": [{"$ref": "file:///etc/passwd"}]}, "only references"),
        ({"type": "object", "$dynamicRef": "#a"}, "$dynamicRef"),
        ({"type": "object", "$ref": "#/$defs/a"}, "does not exist"),
        ({"type": "object", "$defs": {"a": {"$id": "http://x/"}}, "$ref": "#/$defs/a"}, "$id"),
        ({"type": "object", "title": "a\x00"}, "U+0000"),
        ({"type": "object", "minProperties": float("nan")}, "finite"),
        ({"type": "object", "title": "x" * 70_000}, "longer than"),
        (billion(30), "too costly"),
        ({"type": "object", "allOf": [{"$ref": "#"}, {"$ref": "#"}]}, "too costly"),
        ({"type": "object", "properties": {"a": {"allOf": [{"$ref": "#"}, {"$ref": "#"}]}}}, "too costly"),
        (
            {
                "type": "object",
                "properties": {"a": {"$ref": "#"}},
                "additionalProperties": {"$ref": "#"},
                "patternProperties": {"a": {"$ref": "#"}},
            },
            "too costly",
        ),
    ],
)
def test_bad_schemas(schema: Any, why: str):
    with pytest.raises(Rejected) as caught:
        check_schema(schema, "parameters")
    assert why in str(caught.value)
    assert str(caught.value).startswith("parameters")


def test_other_schemas_need_not_describe_objects():
    check_schema({"type": "array"}, "return_schema")
    check_schema({}, "return_schema")
    with pytest.raises(Rejected):
        check_schema({}, "arguments", object_only=True)


def test_nothing_is_fetched_even_for_a_schema_that_was_never_checked():
    with pytest.raises(Rejected, match="cannot be used"):
        validate({"$ref": "http://127.0.0.1:1/x.json"}, {})


def test_patterns_cannot_be_made_to_hang():
    for pattern in ("^(a+)+$", r"^(a|a)*\1$", "^(?=(a+)+$)b", r"^(a*)*\1$"):
        with contextlib.suppress(Rejected):
            check_schema({"type": "object", "properties": {"a": {"pattern": pattern}}}, "parameters")
            validate({"pattern": pattern}, "a" * 5000 + "b")


def test_a_deep_value_is_a_failure_and_not_a_crash():
    deep: Any = {}
    for _ in range(5000):
        deep = {"left": deep}
    assert "nested deeper" in validate(TREE, deep)[0]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["a", "bb", ""]),
    lambda one: st.lists(one, max_size=3) | st.dictionaries(st.sampled_from("ab"), one, max_size=2),
    max_leaves=6,
)
plain_schemas = st.recursive(
    st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["object", "array", "string", "integer", "null"]),
            "minimum": st.integers(-3, 3),
            "maxLength": st.integers(0, 2),
            "enum": st.lists(json_values, min_size=1, max_size=3, unique_by=json.dumps),
        },
    ),
    lambda one: st.fixed_dictionaries(
        {},
        optional={
            "properties": st.dictionaries(st.sampled_from("ab"), one, max_size=2),
            "items": one,
            "anyOf": st.lists(one, min_size=1, max_size=2),
            "not": one,
            "required": st.lists(st.sampled_from("ab"), unique=True),
        },
    ),
    max_leaves=5,
)


@given(plain_schemas, json_values)
def test_agrees_with_the_reference_implementation(schema: dict[str, Any], value: Any):
    check_schema(schema, "schema")
    assert (validate(schema, value) == []) is jsonschema.Draft202012Validator(schema).is_valid(value)


DOCUMENT = {"orders": [{"id": 1, "sum": 5}, {"id": 2, "sum": 7}], "name": "Ann"}


@pytest.mark.parametrize(
    ("mapping", "result"),
    [
        (None, DOCUMENT),
        ("name", "Ann"),
        ("orders[?sum > `5`].id", [2]),
        ("{n: length(orders), first: orders[0].id}", {"n": 2, "first": 1}),
        ({"customer": "name", "total": "sum(orders[].sum)", "gone": "nothing.here"}, {"customer": "Ann", "total": 12, "gone": None}),
        ({}, {}),
        ("to_string(orders[0])", '{"id":1,"sum":5}'),
        ("join('-', orders[].to_string(id))", "1-2"),
        ("contains(orders[].id, `2`)", True),
    ],
)
def test_mappings(mapping: Any, result: Any):
    check_mapping(mapping)
    assert apply_mapping(mapping, DOCUMENT) == result


@pytest.mark.parametrize(
    ("mapping", "why"),
    [
        (5, "must be null"),
        ([], "must be null"),
        ("a ||", "unexpected end at character 4"),
        ("", "JMESPath"),
        ("nope(@)", "uses nope(), which"),
        ({"a": 5}, "for 'a'"),
        ({"a": "]"}, "for 'a'"),
        ("(" * 900 + "a", "too deep"),
        ("a" * 2001, "longer than"),
        ({str(n): "a" for n in range(101)}, "more than 100"),
    ],
)
def test_bad_mappings(mapping: Any, why: str):
    with pytest.raises(Rejected) as caught:
        check_mapping(mapping, "parameter_mapping")
    assert why in str(caught.value)
    assert str(caught.value).startswith("parameter_mapping")


@pytest.mark.parametrize(
    "expression",
    [
        "[@,@][]|" * 30 + "@",
        "{a:@,b:@}|" * 40 + "@",
        "{a:@,b:@}|" * 40 + "to_string(@)",
        "[@,@]|" * 40 + "@ == @",
        "[@,@]|" * 40 + "contains(@, @)",
        "[@,@]|" * 40 + "[?@ == @]",
        "to_number('1e999')",
        "&name",
        "sum(orders[].to_string(id))",
        "sort_by(orders, &nothing)",
        "length(`5`)",
    ],
)
def test_mappings_that_cost_too_much_or_fail(expression: str):
    with pytest.raises(Rejected) as caught:
        apply_mapping(expression, DOCUMENT)
    assert len(str(caught.value)) < 400


def test_steps_are_counted():
    expression = "length([*].[" + ",".join(["@"] * 200) + "])"
    assert apply_mapping(expression, [1] * 100) == 100
    with pytest.raises(Rejected, match="costs too much"):
        apply_mapping(expression, [1] * 1000)


def test_doubling_a_text_is_refused():
    with pytest.raises(Rejected, match="costs too much"):
        apply_mapping("join('',[@,@])|" * 40 + "@", "0123456789")


@given(st.text(alphabet="ab.[]*|&@{}:,?`'\"() 0-=<>!", max_size=40), json_values)
def test_any_expression_gives_json_or_a_sentence(expression: str, document: Any):
    try:
        result = apply_mapping(expression, document)
    except Rejected:
        return
    assert find_unstorable(result) is None
