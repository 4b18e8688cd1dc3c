"""Faults in what is said: replies that arrive whole and mean nothing, or the wrong thing."""

from __future__ import annotations

import json
import re
from dataclasses import replace

from sandbox.replies import to_json
from sandbox.vendor import Answer, Call

NUL_TEXT = "before \x00 between \ud800 after \udfff end"
DEPTH = 5_000
DEEP = "[" * DEPTH + "]" * DEPTH
HUGE = "9" * 5_000
ODD_VALUES = {"deep": DEEP, "huge-int": HUGE, "nan": "NaN"}
STREAM_ERROR = to_json(
    {"error": {"message": "The model failed while it was answering.", "type": "server_error", "param": None, "code": "server_error"}}
)
_CREATED = re.compile(r'"created":\d+')
_TOTAL = re.compile(r'"total_tokens":-?\d+')


def spoil_answer(fault: str, answer: Answer) -> Answer:
    """Return `answer` with a fault in what it says; other faults leave it as it is."""
    match fault:
        case "null-content":
            return replace(answer, content=None, calls=[], finish="stop")
        case "unknown-finish":
            return replace(answer, finish="ran_out_of_ideas")
        case "no-usage":
            return replace(answer, usage=None)
        case "negative-usage":
            return replace(answer, usage={**(answer.usage or {}), "prompt_tokens": -7, "completion_tokens": -3, "total_tokens": -10})
        case "nul":
            return replace(answer, content=None if answer.calls else NUL_TEXT, calls=[_with_nul(call) for call in answer.calls])
    return answer


def _with_nul(call: Call) -> Call:
    try:
        arguments = json.loads(call.arguments)
    except ValueError:
        arguments = {}
    return Call(call.id, call.name, json.dumps({**arguments, "note": NUL_TEXT}))


def spoil_documents(fault: str, documents: list[str]) -> list[str]:
    """Return a reply's documents, one or many, with a fault in them; other faults leave them as they are."""
    middle = len(documents) // 2
    match fault:
        case "wrong-schema":
            return [document.replace('"choices":', '"selections":', 1) for document in documents]
        case "deep" | "huge-int" | "nan":
            odd = ODD_VALUES[fault]
            return [_TOTAL.sub(f'"total_tokens":{odd}', _CREATED.sub(f'"created":{odd}', text, count=1)) for text in documents]
        case "truncated-json":
            return [*documents[:middle], documents[middle][: len(documents[middle]) // 2]]
        case "duplicate-chunk":
            return [*documents[: middle + 1], *documents[middle:]]
        case "error-mid-stream":
            return [*documents[:middle], STREAM_ERROR]
        case "out-of-order" if len(documents) > 3:
            return [documents[0], *_mixed(documents[1:-2]), *documents[-2:]]
        case "no-done" if len(documents) == 1:
            return [documents[0][:-1]]
    return documents


def _mixed(documents: list[str]) -> list[str]:
    """Return the fragments backwards: words and arguments in the wrong order, an index before the one it follows."""
    return documents[::-1]


def spoil_result(fault: str, document: str) -> str:
    """Return a tool's result with a fault in it; faults that have no meaning for a tool leave it as it is."""
    match fault:
        case "wrong-schema":
            return to_json({"unexpected": ["this", "is", "not", "the", "agreed", "shape"]})
        case "nul":
            return to_json({"text": NUL_TEXT})
        case "deep" | "huge-int" | "nan":
            return f'{{"value":{ODD_VALUES[fault]}}}'
    return spoil_documents(fault, [document])[0] if fault in ("truncated-json", "no-done") else document
