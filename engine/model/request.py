"""A call of a model, independent of any vendor's protocol, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from engine.enums import Role
from engine.tools.spec import ToolSpec


@dataclass(frozen=True, slots=True)
class PromptToolCall:
    """A past tool call, sent to the model again. `arguments` is the JSON text as the model wrote it."""

    tool_call_id: str
    tool_name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class PromptMessage:
    """One message of the model's input, independent of any vendor's protocol. `opaque` are blocks that must be sent back unchanged."""

    role: Role
    text: str = ""
    tool_calls: tuple[PromptToolCall, ...] = ()
    tool_call_id: str | None = None
    opaque: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One call of a model, independent of any vendor's protocol. `temperature` is 0 to 100; providers send it divided by 100."""

    model_provider: str
    model_name: str
    messages: tuple[PromptMessage, ...]
    tools: tuple[ToolSpec, ...]
    temperature: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Bound:
    """The most that a model call can use: tokens, and US dollars (None if the price is unknown)."""

    tokens: int
    usd: Decimal | None


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one model call in US dollars, or None if the price is unknown ("unpriced"); never 0 instead.

    `price_source` names the price list and its version, for example "genai-prices 0.2.3".
    """

    cost_usd: Decimal | None
    price_source: str | None
