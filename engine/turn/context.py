"""The immutable inputs of a turn: the agent as it was when the turn was claimed, its tools and its limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import UUID

from engine.enums import Effect, Role


@dataclass(frozen=True, slots=True)
class IntegrationSpec:
    """One thing that a tool is mapped to. `secrets` are decrypted and stay in the worker's memory.

    `degraded`: its health when the turn was claimed, so an answer of it is recorded at once.
    """

    id: UUID
    integration_type: str
    configuration: dict[str, Any]
    parameter_mapping: Any = None
    response_mapping: Any = None
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    degraded: bool = False


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as the model sees it (`name`, `description`, `parameters`), and its integrations.

    `approval`: a person must approve each call. `offered` is False if every integration is unhealthy.
    """

    id: UUID
    name: str
    description: str
    parameters: dict[str, Any]
    return_schema: dict[str, Any] | None = None
    usage_guidelines: str | None = None
    effect: Effect = Effect.UNSAFE
    approval: bool = False
    integrations: tuple[IntegrationSpec, ...] = ()
    offered: bool = True


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that one turn may use: answered model calls, tool calls, both together (`steps`), and seconds of a worker's time."""

    model_calls: int = 8
    tool_calls: int = 16
    steps: int = 24
    wall_clock_s: float = 600.0


@dataclass(frozen=True, slots=True)
class TurnContext:
    """Everything a turn needs besides the log. `temperature` is 0 to 100.

    `opened_at_offset`: the first offset of the messages that this turn answers. `budgeted`: its model calls count against budgets.
    """

    turn_id: UUID
    session_id: UUID
    workspace_id: UUID
    agent_id: UUID
    agent_version: int
    model_provider: str
    model_name: str
    temperature: int
    max_tokens: int
    instructions: str
    tools: tuple[ToolSpec, ...] = ()
    limits: Limits = field(default_factory=Limits)
    opened_at_offset: int = 2**31 - 1
    budgeted: bool = False

    def tool(self, name: str) -> ToolSpec | None:
        """Return the agent's tool of that name, or None."""
        return next((tool for tool in self.tools if tool.name == name), None)


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
