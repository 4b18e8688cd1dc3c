"""JSON Schema for a tool's arguments and results, checked when a tool is saved and applied at every call.

Tenants write the schemas. So references are never fetched, patterns run on an engine with a backtracking limit, and a schema whose
references multiply (two per level, thirty levels, a billion checks) is refused when it is saved.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from itertools import islice
from typing import Any, NoReturn
from urllib.parse import unquote

import jsonschema_rs

from engine.errors import Rejected
from engine.safe_json import check_json_value, find_unstorable
from engine.tools.mapping import apply_mapping, check_mapping

__all__ = ["apply_mapping", "check_mapping", "check_schema", "validate"]

MAX_SCHEMA_BYTES = 64 * 1024
MAX_SCHEMA_WEIGHT = 5_000
MAX_FAILURES = 10
_MAX_SENTENCE = 300
_BACKTRACK_LIMIT = 50_000

# Keywords that contain schemas. Those of `properties` and `prefixItems` apply to different parts of a value; others may share a part.
_BY_NAME = frozenset({"properties", "patternProperties", "dependentSchemas"})
_LISTED = frozenset({"allOf", "anyOf", "oneOf", "prefixItems", "items"})
_SINGLE = frozenset(
    {"items", "additionalItems", "additionalProperties", "unevaluatedItems", "unevaluatedProperties", "contains", "propertyNames"}
) | {"not", "if", "then", "else", "contentSchema"}
_APART = frozenset({"properties", "prefixItems"})
_OTHER_REFERENCES = frozenset({"$dynamicRef", "$recursiveRef"})


def check_schema(schema: object, where: str, *, object_only: bool | None = None) -> None:
    """Return if `schema` is a JSON Schema that may be stored and used. `where` names it in sentences, for example "parameters".

    `object_only`: it must describe objects (`"type": "object"`). The default is True for `where == "parameters"`, because the arguments
    that a model writes are always an object.

    Raises:
        Rejected: it is not; the message says what is wrong and where.
    """
    if not isinstance(schema, dict):
        raise Rejected(f"{where} must be a JSON Schema object.")
    check_json_value(schema, where)
    if len(_canonical(schema)) > MAX_SCHEMA_BYTES:
        raise Rejected(f"{where} is longer than {MAX_SCHEMA_BYTES} bytes.")
    if (where == "parameters" if object_only is None else object_only) and schema.get("type") != "object":
        raise Rejected(f'{where} must be the schema of an object: its "type" must be "object".')
    _CostCheck(schema, where).check()
    try:
        _compile(schema)
    except ValueError as error:
        raise Rejected(f"{where} is not a valid JSON Schema: {_sentence(error)}") from None


def validate(schema: Mapping[str, Any], value: object) -> list[str]:
    """Return at most 10 messages that say what is wrong with `value` and where, or an empty list.

    Raises:
        Rejected: the schema itself cannot be used.
    """
    try:
        validator = _validator(_canonical(schema))
    except ValueError as error:
        raise Rejected(f"The schema cannot be used: {_sentence(error)}") from None
    if problem := find_unstorable(value):
        return [f"the value{problem[0]} {problem[1]}"]
    return [_failure(error) for error in islice(validator.iter_errors(value), MAX_FAILURES)]


def _failure(error: jsonschema_rs.ValidationError) -> str:
    place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.instance_path).lstrip(".")
    return f"{place[:100]}: {_sentence(error)}" if place else _sentence(error)


def _sentence(error: ValueError) -> str:
    message = error.message if isinstance(error, jsonschema_rs.ValidationError) else str(error)
    return message if len(message) <= _MAX_SENTENCE else message[:_MAX_SENTENCE] + "…"


def _canonical(schema: Mapping[str, Any]) -> str:
    return json.dumps(schema, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@lru_cache(maxsize=512)
def _validator(canonical: str) -> jsonschema_rs.Validator:
    return _compile(json.loads(canonical))


def _compile(schema: dict[str, Any]) -> jsonschema_rs.Validator:
    return jsonschema_rs.validator_for(
        schema, retriever=_refuse, pattern_options=jsonschema_rs.FancyRegexOptions(backtrack_limit=_BACKTRACK_LIMIT)
    )


def _refuse(uri: str) -> NoReturn:
    raise ValueError(f"the reference {uri!r} is not fetched")


class _CostCheck:
    """Adds up the cost of checking a value, following references, and stops as soon as it is too high."""

    def __init__(self, schema: dict[str, Any], where: str) -> None:
        self._root = schema
        self._where = where
        self._left = MAX_SCHEMA_WEIGHT

    def check(self) -> None:
        """Raise Rejected if the schema refers outside of itself, or if its references multiply."""
        if self._loops(self._root, frozenset({id(self._root)})) > 1:
            # One way back describes a tree, walked as deep as the value is. Two ways back at one value double the work at every level.
            raise Rejected(f"{self._where} refers back to itself in more than one way, which is too costly to check.")

    def _loops(self, schema: object, within: frozenset[int]) -> int:
        """Return how many references below `schema` lead back to an enclosing schema and may apply to the same value."""
        self._left -= 1
        if self._left < 0:
            raise Rejected(f"{self._where} is too costly to check: its references multiply to more than {MAX_SCHEMA_WEIGHT} schemas.")
        if not isinstance(schema, dict):
            return 0
        loops = 0
        for keyword, value in schema.items():
            if keyword == "$ref" and isinstance(value, str):
                loops += self._follow(value, within)
            elif keyword in _OTHER_REFERENCES:
                raise Rejected(f"{self._where} uses {keyword}; only references like #/$defs/name are supported.")
            elif keyword == "$id" and schema is not self._root:
                raise Rejected(f"{self._where} has an $id within; only the schema as a whole may have one.")
            else:
                found = [self._loops(child, within) for child in _children(keyword, value)]
                loops += max(found, default=0) if keyword in _APART else sum(found)
        return loops

    def _follow(self, reference: str, within: frozenset[int]) -> int:
        if reference != "#" and not reference.startswith("#/"):
            raise Rejected(
                f"{self._where} refers to {reference[:100]!r}; only references into the same schema, like #/$defs/name, are allowed."
            )
        target: Any = self._root
        for step in reference[2:].split("/") if reference != "#" else ():
            name = unquote(step).replace("~1", "/").replace("~0", "~")
            if isinstance(target, dict) and name in target:
                target = target[name]
            elif isinstance(target, list) and name.isdecimal() and int(name) < len(target):
                target = target[int(name)]
            else:
                raise Rejected(f"{self._where} refers to {reference[:100]!r}, which does not exist.")
        if id(target) in within:
            return 1
        return self._loops(target, within | {id(target)})


def _children(keyword: str, value: object) -> list[object]:
    if keyword in _BY_NAME and isinstance(value, dict):
        return list(value.values())
    if keyword in _LISTED and isinstance(value, list):
        return list(value)
    return [value] if keyword in _SINGLE and isinstance(value, dict) else []
