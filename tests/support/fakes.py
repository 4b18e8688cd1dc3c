"""Stand-ins for the engine's two ports: a log that is a list, and a performer that answers from a script."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from uuid import UUID

from engine.enums import EventKind, FinishReason, Source
from engine.errors import LeaseLost
from engine.events import Event, ModelReply, ToolCall, ToolOutcome, Usage
from engine.model.request import Bound, Cost, ModelRequest
from engine.model.tokens import bound_tokens, estimated_usage
from engine.tools.spec import ToolSpec
from engine.turn.cancellation import CancelToken
from engine.turn.commit import CommitResult, Outcome, TurnCommit
from engine.turn.context import TurnContext
from engine.turn.ports import Performer, ResumePoint, TurnLog
from engine.turn.retry import Jitter
from engine.turn.runner import TurnRunner

TURN, OTHER_TURN, SESSION, WORKSPACE, AGENT = (UUID(int=number) for number in range(1, 6))


def context(*tools: ToolSpec, **fields: object) -> TurnContext:
    """Return a turn context with defaults for everything that a test does not set."""
    given: dict[str, object] = {
        "turn_id": TURN,
        "session_id": SESSION,
        "workspace_id": WORKSPACE,
        "agent_id": AGENT,
        "agent_version": 1,
        "model_provider": "openai",
        "model_name": "gpt-4",
        "temperature": 70,
        "max_tokens": 100,
        "instructions": "Be brief.",
        "tools": tools,
    }
    return TurnContext(**(given | fields))  # type: ignore[arg-type]


def customer(text: str, offset: int, turn_id: UUID = TURN) -> Event:
    """Return a customer's message in the log."""
    return Event(EventKind.CUSTOMER_MESSAGE, Source.CUSTOMER, {"text": text}, turn_id=turn_id, offset=offset)


def says(text: str) -> ModelReply:
    """Return a model's reply with text."""
    return ModelReply(text, (), FinishReason.STOP, "gpt-4", Usage(10, 0, 0, 5, 0))


def calls(*tool_calls: ToolCall, text: str = "") -> ModelReply:
    """Return a model's reply with tool calls."""
    return ModelReply(text, tool_calls, FinishReason.TOOL_CALLS, "gpt-4", Usage(10, 0, 0, 5, 0))


class ListLog:
    """A log kept in a list. `arriving`: customer messages that arrive during the turn, by the number of the write that they precede."""

    def __init__(self, *events: Event, arriving: dict[int, Sequence[Event]] | None = None, lost_at: int | None = None) -> None:
        self.events = list(events)
        self.commits: list[TurnCommit] = []
        self._arriving = arriving or {}
        self._lost_at = lost_at
        self._unread: list[Event] = []

    async def write(self, commit: TurnCommit) -> CommitResult:
        if len(self.commits) == self._lost_at:
            raise LeaseLost("taken over")
        for event in self._arriving.get(len(self.commits), ()):
            arrived = replace(event, offset=len(self.events))
            self.events.append(arrived)
            self._unread.append(arrived)
        for event in commit.events:
            self.events.append(replace(event, offset=len(self.events), turn_id=TURN))
        self.commits.append(commit)
        if commit.reserve is None:
            return CommitResult(outcome=commit.outcome)
        arrived_messages, self._unread = tuple(self._unread), []
        return CommitResult(arrived_messages, outcome=commit.outcome)

    def kinds(self) -> list[str]:
        return [str(event.kind) for event in self.events]


@dataclass
class Hanging:
    """An answer that never arrives; `hangs` is set once the engine waits for it."""

    says: tuple[str, ...] = ()
    hangs: asyncio.Event = field(default_factory=asyncio.Event)


class Script:
    """A performer that answers from a script: model replies (or errors) in order, tool outcomes by tool call id."""

    def __init__(self, *replies: ModelReply | Exception | Hanging, tools: Mapping[str, ToolOutcome | Hanging] | None = None) -> None:
        self._replies = list(replies)
        self._tools = tools or {}
        self.requests: list[ModelRequest] = []
        self.tool_keys: list[tuple[str, str]] = []
        self.made: list[ToolCall] = []
        self.begun: list[str] = []

    async def call_model(self, request: ModelRequest, on_delta: Callable[[str], None]) -> tuple[ModelReply, Cost]:
        self.requests.append(request)
        reply = self._replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        if isinstance(reply, Hanging):
            for piece in reply.says:
                on_delta(piece)
            reply.hangs.set()
            await asyncio.Event().wait()
            raise AssertionError("unreachable")
        return reply, Cost(None, None)

    async def call_tool(self, context: TurnContext, call: ToolCall, idempotency_key: str, *, begun: bool) -> ToolOutcome:
        self.tool_keys.append((call.tool_call_id, idempotency_key))
        self.made.append(call)
        self.begun += [call.tool_call_id] if begun else []
        outcome = self._tools[call.tool_call_id]
        if isinstance(outcome, Hanging):
            outcome.hangs.set()
            await asyncio.Event().wait()
            raise AssertionError("unreachable")
        return outcome

    def bound(self, request: ModelRequest) -> Bound:
        return Bound(bound_tokens(request) + request.max_tokens, Decimal("0.01"))

    def estimate(self, request: ModelRequest, streamed: str) -> tuple[Usage, Cost]:
        return estimated_usage(request, streamed), Cost(Decimal("0.001"), "estimate")


def no_wait(low: float, high: float) -> float:
    """Jitter for tests: no back-off between attempts, the shortest time for a parked turn."""
    return 0.0 if low < 1 else low


async def run(
    log: TurnLog,
    performer: Performer,
    context: TurnContext,
    resume_point: ResumePoint,
    cancel: CancelToken | None = None,
    *,
    jitter: Jitter = no_wait,
    slice_s: float = 120.0,
) -> Outcome:
    """Run a turn to its outcome, without waiting between attempts."""
    return await TurnRunner(log, performer, context, resume_point, cancel, jitter=jitter, slice_s=slice_s).run()
