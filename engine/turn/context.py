"""The immutable inputs of a turn: the agent as it was when the turn was claimed, its tools and its limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

from engine.tools.spec import ToolSpec


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
