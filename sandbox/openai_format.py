"""OpenAI's response format: one document for a complete reply, many for a stream."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from sandbox.model import Answer, Call
from sandbox.replies import to_json

CREATED = 1_700_000_000
ARGUMENT_CHARS = 12
_WORD = re.compile(r"\s*\S+\s*|\s+")


@dataclass(frozen=True, slots=True)
class ReplyIdentity:
    """The id and model name, which every document of one reply repeats."""

    number: int
    model: str

    @property
    def reply_id(self) -> str:
        """The id of the reply."""
        return f"chatcmpl-{self.number}"


def completion(answer: Answer, identity: ReplyIdentity) -> str:
    """Return a complete reply as one document."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.content, "refusal": None}
    if answer.calls:
        message["tool_calls"] = [_call(call) for call in answer.calls]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish}
    document = {
        "id": identity.reply_id,
        "object": "chat.completion",
        "created": CREATED + identity.number,
        "model": identity.model,
        "choices": [choice],
    }
    if answer.usage is not None:
        document["usage"] = answer.usage
    return to_json(document | {"service_tier": "default", "system_fingerprint": "fp_sandbox"})


def _call(call: Call) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def chunks(answer: Answer, identity: ReplyIdentity, *, include_usage: bool) -> list[str]:
    """Return a reply as the documents of a stream: role, words or fragments of calls, finish reason, usage."""
    created, model = CREATED + identity.number, to_json(identity.model)
    prefix = (
        f'{{"id":"{identity.reply_id}","object":"chat.completion.chunk","created":{created},"model":{model},'
        '"service_tier":"default","system_fingerprint":"fp_sandbox","choices":['
    )
    no_usage = ',"usage":null}' if include_usage else "}"
    suffix = f',"logprobs":null,"finish_reason":null}}]{no_usage}'
    role = {"role": "assistant", "content": None if answer.content is None else "", "refusal": None}
    documents = [f'{prefix}{{"index":0,"delta":{to_json(role)}{suffix}']
    content = f'{prefix}{{"index":0,"delta":{{"content":'
    documents += [f"{content}{to_json(word)}}}{suffix}" for word in _WORD.findall(answer.content or "")]
    documents += [f'{prefix}{{"index":0,"delta":{{"tool_calls":[{to_json(part)}]}}{suffix}' for part in _fragments(answer.calls)]
    documents.append(f'{prefix}{{"index":0,"delta":{{}},"logprobs":null,"finish_reason":{to_json(answer.finish)}}}]{no_usage}')
    if include_usage and answer.usage is not None:
        documents.append(f'{prefix}],"usage":{to_json(answer.usage)}}}')
    return documents


def _fragments(calls: list[Call]) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    for index, call in enumerate(calls):
        opening = {"index": index, "id": call.id, "type": "function", "function": {"name": call.name, "arguments": ""}}
        parts.append(opening)
        for start in range(0, len(call.arguments), ARGUMENT_CHARS):
            parts.append({"index": index, "function": {"arguments": call.arguments[start : start + ARGUMENT_CHARS]}})
    return parts


def events(documents: list[str]) -> list[bytes]:
    """Return the documents as server-sent events."""
    return [f"data: {document}\n\n".encode() for document in documents]


DONE = b"data: [DONE]\n\n"
