"""Faults in the content of a response: it arrives completely, but the document is invalid or wrong."""

from __future__ import annotations

import json
import re
from dataclasses import replace

from sandbox.model import Answer, Call
from sandbox.replies import to_json

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


def corrupt_answer(fault: str, answer: Answer) -> Answer:
    """Return `answer` with the content fault `fault`, or unchanged if it is another kind of fault."""
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


def corrupt_documents(fault: str, documents: list[str]) -> list[str]:
    """Return the documents of a response with the fault `fault`, or unchanged if it is another kind of fault."""
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
            return [documents[0], *documents[1:-2][::-1], *documents[-2:]]
        case "no-done" if len(documents) == 1:
            return [documents[0][:-1]]
    return documents


def corrupt_result(fault: str, document: str) -> str:
    """Return a tool's result with the fault `fault`, or unchanged if the fault does not apply to tools."""
    match fault:
        case "wrong-schema":
            return to_json({"unexpected": ["this", "is", "not", "the", "agreed", "shape"]})
        case "nul":
            return to_json({"text": NUL_TEXT})
        case "deep" | "huge-int" | "nan":
            return f'{{"value":{ODD_VALUES[fault]}}}'
    return corrupt_documents(fault, [document])[0] if fault in ("truncated-json", "no-done") else document
