"""JMESPath mappings from a tool's arguments to a request, and from an answer to a result.

A mapping is null (identity), one expression, or an object of {name: expression}. Tenants write the expressions. JMESPath has no loops, but
each `|` can double a value, so the interpreter here has a budget.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, cast

from jmespath import exceptions, functions, parser, visitor

from engine.errors import Rejected
from engine.safe_json import find_unstorable

MAX_EXPRESSION = 2_000
MAX_TARGETS = 100
MAX_STEPS = 100_000
MAX_RESULT_NODES = 100_000
MAX_TEXT = 1_000_000
_CHARS_PER_STEP = 100


class _TooCostly(Exception):
    """The evaluation exceeds its budget."""


# JMESPath's own functions raise these: to_number('1e999'), ceil of it, deep nesting.
_FAILURES = (exceptions.JMESPathError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RecursionError)


def check_mapping(mapping: object, where: str = "The mapping") -> None:
    """Return if `mapping` is null, a JMESPath expression, or an object of them.

    Raises:
        Rejected: it is not; the message says what is wrong and where.
    """
    if mapping is None:
        return
    if isinstance(mapping, str):
        _check_expression(mapping, where)
    elif isinstance(mapping, dict):
        if len(mapping) > MAX_TARGETS:
            raise Rejected(f"{where} has more than {MAX_TARGETS} names.")
        for name, expression in mapping.items():
            if not isinstance(expression, str):
                raise Rejected(f"{where} must give a JMESPath expression, as a string, for {str(name)[:60]!r}.")
            _check_expression(expression, f"{where} for {str(name)[:60]!r}")
    else:
        raise Rejected(f"{where} must be null, a JMESPath expression, or an object of names and JMESPath expressions.")


def apply_mapping(mapping: object, document: Any) -> Any:
    """Return the result of `mapping` on `document`. An expression that finds nothing yields null.

    Raises:
        Rejected: an expression is invalid, fails on this document, or exceeds its budget.
    """
    if mapping is None:
        return document
    if isinstance(mapping, str):
        result = _evaluate(mapping, document)
    elif isinstance(mapping, dict):
        result = {name: _evaluate(expression, document) for name, expression in mapping.items()}
    else:
        raise Rejected("The mapping must be null, a JMESPath expression, or an object of names and JMESPath expressions.")
    if problem := find_unstorable(result, max_nodes=MAX_RESULT_NODES):
        raise Rejected(f"The result of the mapping cannot be used: the value{problem[0]} {problem[1]}.")
    return result


def _check_expression(expression: str, where: str) -> None:
    try:
        names = _function_names(_parse(expression))
    except _FAILURES as error:
        raise Rejected(f"{where} is not a valid JMESPath expression: {_reason(error)}") from None
    if unknown := sorted(names - functions.Functions.FUNCTION_TABLE.keys()):
        raise Rejected(f"{where} uses {unknown[0]}(), which is not a JMESPath function.")


def _evaluate(expression: str, document: Any) -> Any:
    try:
        return _Interpreter().visit(_parse(expression), document)
    except _TooCostly:
        raise Rejected(f"The mapping {_short(expression)} costs too much on this value.") from None
    except _FAILURES as error:
        raise Rejected(f"The mapping {_short(expression)} failed: {_reason(error)}") from None


@lru_cache(maxsize=1024)
def _parse(expression: str) -> dict[str, Any]:
    if len(expression) > MAX_EXPRESSION:
        raise ValueError(f"it is longer than {MAX_EXPRESSION} characters")
    return cast(dict[str, Any], parser.Parser().parse(expression).parsed)


def _function_names(tree: dict[str, Any]) -> set[str]:
    names = {tree["value"]} if tree["type"] == "function_expression" else set()
    for child in tree.get("children", ()):
        if isinstance(child, dict):
            names |= _function_names(child)
    return names


def _short(expression: str) -> str:
    return repr(expression if len(expression) <= 80 else expression[:80] + "…")


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply."
    if isinstance(error, exceptions.ParseError):
        found = "end" if error.token_value in (None, "") else repr(str(error.token_value)[:40])
        return f"unexpected {found} at character {error.lex_position}."
    text = " ".join(str(error).split())
    return text[:200] or type(error).__name__


def _require_small(value: Any) -> None:
    """Raise if walking all of `value` would exceed the budget; shared parts are walked each time they occur."""
    if find_unstorable(value, max_nodes=MAX_STEPS // 10):
        raise _TooCostly


class _Functions(functions.Functions):
    """JMESPath's functions. The two whose result can be longer than their arguments have a limit."""

    @functions.signature({"types": ["string"]}, {"types": ["array-string"]})
    def _func_join(self, separator: str, array: list[str]) -> str:
        if sum(map(len, array)) + len(separator) * len(array) > MAX_TEXT:
            raise _TooCostly
        return separator.join(array)

    @functions.signature({"types": []})
    def _func_to_string(self, arg: Any) -> Any:
        _require_small(arg)
        return arg if isinstance(arg, str) else json.dumps(arg, separators=(",", ":"), ensure_ascii=False)


class _Interpreter(visitor.TreeInterpreter):
    """JMESPath's interpreter with a budget of steps for one evaluation."""

    _shared_functions = _Functions()

    def __init__(self) -> None:
        super().__init__(visitor.Options(custom_functions=self._shared_functions))
        self._left = MAX_STEPS

    def visit(self, node: Any, *args: Any, **kwargs: Any) -> Any:
        """Visit a node, which costs one step."""
        self._spend(1)
        return super().visit(node, *args, **kwargs)

    def visit_flatten(self, node: Any, value: Any) -> Any:
        """Flatten; each element costs."""
        merged = super().visit_flatten(node, value)
        self._spend(len(merged or ()) // 4)
        return merged

    def visit_comparator(self, node: Any, value: Any) -> Any:
        """Compare. Equal values are walked to their ends, so both must be of bounded size."""
        for child in node["children"]:
            _require_small(self.visit(child, value))
        return super().visit_comparator(node, value)

    def visit_function_expression(self, node: Any, value: Any) -> Any:
        """Call a function. Its arguments cost by their size."""
        arguments = [self.visit(child, value) for child in node["children"]]
        self._spend(sum(len(each) for each in arguments if isinstance(each, (str, list, dict))) // _CHARS_PER_STEP)
        if node["value"] == "contains":
            for each in arguments:
                _require_small(each)
        return self._shared_functions.call_function(node["value"], arguments)

    def _spend(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            raise _TooCostly
