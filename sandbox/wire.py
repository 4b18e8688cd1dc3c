"""The vendor's shapes: one document for a whole reply, many for a stream."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from sandbox.replies import to_json
from sandbox.vendor import Answer, Call

CREATED = 1_700_000_000
ARGUMENT_CHARS = 12
_WORD = re.compile(r"\s*\S+\s*|\s+")


@dataclass(frozen=True, slots=True)
class Stamp:
    """What every document of one reply repeats."""

    number: int
    model: str

    @property
    def reply_id(self) -> str:
        """Return the id of the reply."""
        return f"chatcmpl-{self.number}"


def completion(answer: Answer, stamp: Stamp) -> str:
    """Return a whole reply as one document."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.content, "refusal": None}
    if answer.calls:
        message["tool_calls"] = [_call(call) for call in answer.calls]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish}
    document = {
        "id": stamp.reply_id,
        "object": "chat.completion",
        "created": CREATED + stamp.number,
        "model": stamp.model,
        "choices": [choice],
    }
    if answer.usage is not None:
        document["usage"] = answer.usage
    return to_json(document | {"service_tier": "default", "system_fingerprint": "fp_sandbox"})


def _call(call: Call) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def chunks(answer: Answer, stamp: Stamp, *, include_usage: bool) -> list[str]:
    """Return a reply as the documents of a stream: the role, the words or the calls in fragments, the end, the usage."""
    beginning = (
        f'{{"id":"{stamp.reply_id}","object":"chat.completion.chunk","created":{CREATED + stamp.number},"model":{to_json(stamp.model)},'
        '"service_tier":"default","system_fingerprint":"fp_sandbox","choices":['
    )
    usage_so_far = ',"usage":null}' if include_usage else "}"
    going_on = f',"logprobs":null,"finish_reason":null}}]{usage_so_far}'
    role = {"role": "assistant", "content": None if answer.content is None else "", "refusal": None}
    documents = [f'{beginning}{{"index":0,"delta":{to_json(role)}{going_on}']
    content = f'{beginning}{{"index":0,"delta":{{"content":'
    documents += [f"{content}{to_json(word)}}}{going_on}" for word in _WORD.findall(answer.content or "")]
    documents += [f'{beginning}{{"index":0,"delta":{{"tool_calls":[{to_json(part)}]}}{going_on}' for part in _fragments(answer.calls)]
    documents.append(f'{beginning}{{"index":0,"delta":{{}},"logprobs":null,"finish_reason":{to_json(answer.finish)}}}]{usage_so_far}')
    if include_usage and answer.usage is not None:
        documents.append(f'{beginning}],"usage":{to_json(answer.usage)}}}')
    return documents


def _fragments(calls: list[Call]) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    for index, call in enumerate(calls):
        begun = {"index": index, "id": call.id, "type": "function", "function": {"name": call.name, "arguments": ""}}
        parts.append(begun)
        for start in range(0, len(call.arguments), ARGUMENT_CHARS):
            parts.append({"index": index, "function": {"arguments": call.arguments[start : start + ARGUMENT_CHARS]}})
    return parts


def events(documents: list[str]) -> list[bytes]:
    """Return the documents as server-sent events."""
    return [f"data: {document}\n\n".encode() for document in documents]


DONE = b"data: [DONE]\n\n"
