"""The two edges of the engine: the log of a claimed turn, and the performer of model calls and tool calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from engine.events import Event, ModelReply, ToolCall, ToolOutcome, Usage
from engine.turn.commit import CommitResult, Reserved, TurnCommit
from engine.turn.context import Bound, Cost, ModelRequest, TurnContext
from engine.turn.pending_calls import Pending

OnDelta = Callable[[str], None]
"""Receives the text of a reply piece by piece, as it is streamed."""


class TurnLog(Protocol):
    """The log of a claimed turn."""

    async def write(self, commit: TurnCommit) -> CommitResult:
        """Write `commit` in one transaction. Raise LeaseLost if another claim holds the session."""


class Performer(Protocol):
    """Everything that waits for another machine, and the cost of it."""

    async def call_model(self, request: ModelRequest, on_delta: OnDelta) -> tuple[ModelReply, Cost]:
        """Send one request to a model provider. Raise the errors of `engine.errors`."""

    async def call_tool(self, context: TurnContext, call: ToolCall, idempotency_key: str, *, begun: bool) -> ToolOutcome:
        """Make one tool call, retried as the tool's effect allows. Raise nothing but cancellation.

        `begun`: an earlier attempt started this call, and its result is unknown.
        """

    def bound(self, request: ModelRequest) -> Bound:
        """Return the most that a model call can use."""

    def estimate(self, request: ModelRequest, streamed: str) -> tuple[Usage, Cost]:
        """Return our own count of what a model call used that was cut off after `streamed`."""


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """The state in which a claim finds the turn.

    `reserved`: the model call that the claim itself reserved, if one comes next. `pending`: the rows of tool calls without a result, by
    tool call id. `elapsed_s`: seconds since the turn was first claimed. `running_s`: the part of it that workers spent on the turn.
    `attempts` counts this claim.
    """

    events: tuple[Event, ...]
    reserved: Reserved | None
    pending: Mapping[str, Pending] = field(default_factory=dict)
    elapsed_s: float = 0.0
    running_s: float = 0.0
    attempts: int = 1
