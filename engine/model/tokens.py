"""Token counts without the vendor's tokeniser: an upper bound, and an estimate."""

from __future__ import annotations

import json
from collections.abc import Iterator

from engine.events import Usage
from engine.turn.context import ModelRequest

# A token of a byte-level tokeniser is at least one byte, so bytes bound tokens; English text has about four bytes to a token.
BYTES_PER_TOKEN = 4
# What vendors add around each message and each tool; the true figures are 3 to 8.
PER_PART = 16


def bound_tokens(request: ModelRequest) -> int:
    """Return the most input tokens that `request` can have."""
    return sum(len(part.encode("utf-8", "surrogatepass")) + PER_PART for part in _parts(request)) + PER_PART


def estimated_usage(request: ModelRequest, streamed: str) -> Usage:
    """Return our count of a call that was cut off after `streamed`: at most `bound_tokens` and `max_tokens`."""
    sent = sum(-(-len(part.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN) + PER_PART // 4 for part in _parts(request))
    written = -(-len(streamed.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN)
    return Usage(input_tokens=sent, output_tokens=min(written, request.max_tokens))


def _parts(request: ModelRequest) -> Iterator[str]:
    for message in request.messages:
        yield message.text
        for call in message.tool_calls:
            yield call.tool_name + call.arguments
        if message.opaque:
            yield json.dumps(message.opaque)
    for tool in request.tools:
        yield tool.name + tool.description + json.dumps(tool.parameters) + (tool.usage_guidelines or "")
