"""What a turn needs of the world: its log, whoever performs what it decides, and where it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from engine.events import Event, ModelReply, ToolCall, ToolOutcome, Usage
from engine.turn.commit import CommitResult, Reserved, TurnCommit
from engine.turn.context import Bound, Cost, ModelRequest, TurnContext
from engine.turn.pending_calls import Pending


class TurnLog(Protocol):
    """The log of a claimed turn."""

    async def write(self, change: TurnCommit) -> CommitResult:
        """Commit `change`, all of it or nothing. Raises LeaseLost when another claim holds the session."""


class Perform(Protocol):
    """Everything that waits for another machine, and what it may cost."""

    async def call_model(self, request: ModelRequest, heard: list[str]) -> tuple[ModelReply, Cost]:
        """One request to a model provider; its text is added to `heard` as it comes. Raises what `engine.errors` names."""

    async def call_tool(self, context: TurnContext, call: ToolCall, idempotency_key: str, *, begun: bool) -> ToolOutcome:
        """One tool call, retried within itself as the tool's effect allows. Raises nothing but cancellation.

        `begun`: a former worker had begun it, and whether it happened is not known.
        """

    def bound(self, request: ModelRequest) -> Bound:
        """The most that a model call can use."""

    def estimate(self, request: ModelRequest, heard: str) -> tuple[Usage, Cost]:
        """What a model call that was cut off after `heard` has used, by our own count."""


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """Where a claim finds the turn. `reserved`: the model call that the claim itself reserved, where one comes next.

    `pending`: the tool calls without a result that have a row, by tool call id. `elapsed_s`: since the turn was first claimed;
    `running_s`: of them, those that workers spent on it. `attempts` counts this claim.
    """

    events: tuple[Event, ...]
    reserved: Reserved | None
    pending: Mapping[str, Pending] = field(default_factory=dict)
    elapsed_s: float = 0.0
    running_s: float = 0.0
    attempts: int = 1
