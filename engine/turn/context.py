"""What a turn starts with: the agent as it was when the turn was claimed, its tools, its limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import UUID

from engine.enums import Effect, Role


@dataclass(frozen=True, slots=True)
class IntegrationSpec:
    """What a tool is mapped to. `secrets` are decrypted; they live in the worker's memory only.

    `degraded`: it was, when the turn was claimed, so that an answer of it is news.
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
    """A tool as the model sees it (`name`, `description`, `parameters`), and what it is mapped to.

    `approval`: a person must approve each call of it. `offered`: not where all that it is mapped to is unhealthy.
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
    """What one turn may use: answered model calls, tool calls, both together (`steps`), and seconds of being carried, waits not counted."""

    model_calls: int = 8
    tool_calls: int = 16
    steps: int = 24
    wall_clock_s: float = 600.0


@dataclass(frozen=True, slots=True)
class TurnContext:
    """Everything a turn needs besides the log.

    `opened_at_offset` is where its stretch of the log begins. `budgeted`: its model calls count against budgets.
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
        """The agent's tool of that name, or None."""
        return next((tool for tool in self.tools if tool.name == name), None)


@dataclass(frozen=True, slots=True)
class PromptToolCall:
    """A past tool call, as replayed to the model: `arguments` is the JSON text the model had written."""

    tool_call_id: str
    tool_name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class PromptMessage:
    """One message of the model's input, in no vendor's form. Roles stand in an order every provider accepts."""

    role: Role
    text: str = ""
    tool_calls: tuple[PromptToolCall, ...] = ()
    tool_call_id: str | None = None
    opaque: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One call of a model, in no vendor's form. `temperature` is 0–100 and is divided by 100 on the wire."""

    model_provider: str
    model_name: str
    messages: tuple[PromptMessage, ...]
    tools: tuple[ToolSpec, ...]
    temperature: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Bound:
    """The most a model call can use: tokens, and US dollars, or None where no price is known."""

    tokens: int
    usd: Decimal | None


@dataclass(frozen=True, slots=True)
class Cost:
    """What one model call cost. `cost_usd` is None where no price is known ("unpriced"), never 0 for want of one.

    `price_source` names the list the price came from and its version, for example "genai-prices 0.2.3".
    """

    cost_usd: Decimal | None
    price_source: str | None
