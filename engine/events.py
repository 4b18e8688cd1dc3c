"""The events of a session's log, as values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from engine.enums import EventKind, FinishReason, Source, ToolStatus


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a session's log, or (with `offset` -1) one about to be appended."""

    kind: EventKind
    source: Source
    content: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict)
    turn_id: UUID | None = None
    offset: int = -1


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one model call, by kind.

    `cached_input_tokens` and `cache_write_tokens` are counted inside `input_tokens`,
    `reasoning_tokens` inside `output_tokens`; providers that count otherwise are normalised by their module.
    """

    input_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Input and output; the other kinds are parts of those."""
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One use of a tool, as the model asked for it.

    `arguments` is None where the model's text was not a JSON object; `raw_arguments` is always that text.
    `tool_call_id` is ours, unique in the session; the provider's own id is not needed after the reply is parsed.
    """

    tool_call_id: str
    tool_name: str
    arguments: dict[str, Any] | None
    raw_arguments: str = ""


@dataclass(frozen=True, slots=True)
class ToolOutcome:
    """What came of a tool call: `result` where it succeeded, else `error`, a sentence the model can act on."""

    status: ToolStatus
    result: Any = None
    error: str | None = None
    latency_ms: int = 0
    requests: int = 1
    integration_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class ModelReply:
    """One whole answer of a model provider, whatever its protocol.

    `text` and `tool_calls` are sanitised (no U+0000, no lone surrogates). `usage` is None where the provider sent none.
    `opaque` are provider blocks (thinking signatures, encrypted reasoning) to be replayed within the turn, untouched.
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
