"""Values that turns are made of: events, tool calls and their outcomes, model replies, usage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from engine.enums import EventKind, FinishReason, Source, ToolStatus


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a session's log; with `offset` -1, one that is about to be appended."""

    kind: EventKind
    source: Source
    content: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict)
    turn_id: UUID | None = None
    offset: int = -1


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one model call, by kind.

    `cached_input_tokens` and `cache_write_tokens` are included in `input_tokens`, `reasoning_tokens` in `output_tokens`. The modules of
    providers that count otherwise convert their figures.
    """

    input_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Input and output tokens, which include the other kinds."""
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One use of a tool that the model asked for.

    `raw_arguments` is the model's text; `arguments` is None if it is not a JSON object. `tool_call_id` is ours and unique in the session;
    the provider's id is not needed after the reply is parsed.
    """

    tool_call_id: str
    tool_name: str
    arguments: dict[str, Any] | None
    raw_arguments: str = ""


@dataclass(frozen=True, slots=True)
class ToolOutcome:
    """The outcome of a tool call: its `result` if it succeeded, else `error`, a sentence that the model can act on."""

    status: ToolStatus
    result: Any = None
    error: str | None = None
    latency_ms: int = 0
    requests: int = 1
    integration_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class ModelReply:
    """A complete reply of a model, independent of the provider's protocol.

    `text` and `tool_calls` are sanitised (no U+0000, no lone surrogates). `usage` is None if the provider sent none. `opaque` are blocks
    of the provider (thinking signatures, encrypted reasoning) that must be sent back unchanged within the turn.
    """

    text: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: FinishReason
    model: str
    usage: Usage | None = None
    provider_request_id: str | None = None
    ttft_ms: int | None = None
    latency_ms: int = 0
    opaque: tuple[dict[str, Any], ...] = ()
