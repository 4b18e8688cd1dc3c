"""What answers look like. These describe (and the tests compare); the answers themselves are made from rows, see `api/responses.py`."""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from engine.enums import EventKind, Source

Money = Annotated[str, Field(pattern=r"^-?\d+(\.\d+)?$", examples=["0.00021"], description="US dollars.")]
TurnStatus = Literal["queued", "running", "waiting", "done", "failed", "dead", "cancelled"]
ApprovalStatus = Literal["pending", "approved", "denied", "expired", "cancelled"]


class Answer(BaseModel):
    """An answer's body."""

    model_config = ConfigDict(extra="forbid")


class Paged(Answer):
    """One page of a list. `next_cursor` is null on the last."""

    next_cursor: str | None
    has_more: bool
    total_count: Annotated[int | None, Field(description="With `include_total=true` only.")] = None


class Agent(Answer):
    """An agent. `version` grows with every change."""

    id: UUID
    name: str
    description: str | None
    status: str
    composition_mode: str
    system_prompt: str | None
    model_provider: str
    model_name: str
    temperature: int
    max_tokens: int
    conversation_style: str
    strategy: str
    allow_interruption: bool
    allow_proactive_messages: bool
    data_retention_days: int
    version: int
    total_sessions: int
    total_messages: int
    total_tokens_used: int
    total_cost: Money
    average_session_duration: int | None
    last_active_at: datetime | None
    created_by: UUID | None
    created_at: datetime
    updated_at: datetime


class Agents(Paged):
    """Agents, the newest first."""

    items: list[Agent]


class AgentWithStats(Agent):
    """An agent with what it came to, as of now."""

    active_sessions: int
    recent_activity: Annotated[datetime | None, Field(description="When anything was last said or done in its sessions.")]
    tool_count: int


class AgentsWithStats(Paged):
    """Agents with what they came to, the newest first."""

    items: list[AgentWithStats]


class Tool(Answer):
    """A tool's abstract definition."""

    id: UUID
    name: str
    display_name: str | None
    description: str
    tool_type: str
    parameters: dict[str, Any]
    return_schema: dict[str, Any] | None
    usage_guidelines: str | None
    error_handling: dict[str, Any]
    effect: str
    enabled: bool
    use_count: int
    success_rate: Money | None
    last_used_at: datetime | None
    created_at: datetime
    updated_at: datetime


class Tools(Paged):
    """Tools, the newest first."""

    items: list[Tool]


class AssignedTool(Tool):
    """A tool, as an agent may use it."""

    configuration: dict[str, Any]
    assignment_enabled: bool


class AssignedTools(Answer):
    """The tools of an agent, by name."""

    items: list[AssignedTool]


class SecretSet(Answer):
    """There is a secret of this name; what it is is not said."""

    set: Literal[True]


class Integration(Answer):
    """What a tool is mapped to."""

    id: UUID
    tool_id: UUID
    integration_type: str
    target_id: str
    configuration: dict[str, Any]
    secrets: dict[str, SecretSet]
    parameter_mapping: str | dict[str, str] | None
    response_mapping: str | dict[str, str] | None
    enabled: bool
    priority: int
    health_status: str
    last_health_check: datetime | None
    error_count: int
    last_error: str | None
    created_at: datetime
    updated_at: datetime


class Integrations(Answer):
    """A tool's integrations in the order they are tried."""

    items: list[Integration]


class HealthChange(Answer):
    """An integration's health became another."""

    id: UUID
    integration_id: UUID
    from_status: str
    to_status: str
    error: str | None
    created_at: datetime


class HealthChanges(Answer):
    """The latest changes, the newest first."""

    items: list[HealthChange]


class SessionAgent(Answer):
    """A glance at a session's agent."""

    id: UUID
    name: str
    model_provider: str
    model_name: str


class Session(Answer):
    """A session and its counters, which equal a recount of its log and of its model calls."""

    id: UUID
    agent_id: UUID
    agent: SessionAgent
    user_id: UUID | None
    customer_id: str | None
    mode: str
    status: str
    title: str | None
    metadata: dict[str, Any]
    variables: dict[str, Any]
    tags: list[str]
    session_type: str
    locale: str
    timezone: str
    event_count: int
    message_count: int
    tokens_used: int
    input_tokens: int
    cached_input_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost_usd: Money
    unpriced_calls: int
    unknown_calls: int
    started_at: datetime
    last_activity_at: datetime
    ended_at: datetime | None
    satisfaction_score: Annotated[int | None, Field(description="From 1 to 5, as `PUT …/satisfaction` had it.")]
    quarantined_at: Annotated[datetime | None, Field(description="Since when nothing of it is carried: three turns died in a row.")]
    held_at: Annotated[datetime | None, Field(description="Since when it is kept from being deleted.")]
    held_by: str | None
    hold_reason: str | None
    created_at: datetime
    updated_at: datetime


class Sessions(Paged):
    """Sessions, the newest first."""

    items: list[Session]


class Event(Answer):
    """One immutable line of a session's log. The shape of `content` follows from `kind`."""

    id: UUID
    session_id: UUID
    offset: int
    kind: EventKind
    source: Source
    content: dict[str, Any]
    metadata: dict[str, Any]
    turn_id: UUID | None
    created_at: datetime


class Events(Answer):
    """Events by offset. `next_after` is the last one's offset, or the `after` that was sent."""

    events: list[Event]
    next_after: int


class TurnGlance(Answer):
    """A turn and where it stands."""

    id: UUID
    status: TurnStatus


class Accepted(Answer):
    """The message is in the log. `turn` is null where a person answers (mode manual), and where a person wrote it."""

    event: Event
    turn: TurnGlance | None


class Cancelled(Answer):
    """What became of a request to cancel."""

    status: Annotated[
        Literal["cancelled", "cancelling", "settled"],
        Field(
            description="cancelled: what was open has ended. cancelling: a worker carries a turn and will end it within a second. settled: "
            "nothing was open any more."
        ),
    ]
    session_id: UUID
    turn_id: Annotated[UUID | None, Field(description="Null where the whole session was meant.")]


class Redriven(Answer):
    """The turn is open again."""

    turn: TurnGlance


class Health(Answer):
    """The process answers."""

    status: Literal["ok"]


class Readiness(Answer):
    """Work can be done: every part is `ok`."""

    status: Literal["ready"]
    checks: dict[str, str]


class Approval(Answer):
    """A tool call that waits for a person, or what was decided about it."""

    id: UUID
    session_id: UUID
    turn_id: UUID
    tool_call_id: str
    tool_id: UUID | None
    tool_name: str
    arguments: Annotated[dict[str, Any] | None, Field(description="As the model wants them.")]
    status: Annotated[
        ApprovalStatus, Field(description="expired: nobody decided in time. cancelled: the turn ended before. Neither is run.")
    ]
    requested_at: datetime
    expires_at: Annotated[datetime, Field(description="From then on it cannot be decided.")]
    decided_by: Annotated[str | None, Field(description="The name and prefix of the key it was decided with, and its user.")]
    decided_at: datetime | None
    reason: str | None
    edited_arguments: Annotated[dict[str, Any] | None, Field(description="What is run in place of `arguments`.")]
    used_at: Annotated[datetime | None, Field(description="When the call was begun; an approval is good for one.")]


class Approvals(Paged):
    """Approvals, the newest first."""

    items: list[Approval]


Amount = Annotated[str, Field(pattern=r"^-?\d+(\.\d+)?$", examples=["25.5"], description="US dollars or tokens, by the budget's unit.")]


class Budget(Answer):
    """A cap on what model calls may use. `spent` and `reserved` together never exceed `cap`, unless it was lowered since."""

    id: UUID
    scope: Literal["workspace", "agent", "session"]
    scope_id: UUID
    unit: Literal["usd", "tokens"]
    period: Literal["day", "total"]
    cap: Amount
    spent: Annotated[Amount, Field(description="By calls whose usage is known; of a daily budget, today.")]
    reserved: Annotated[
        Amount, Field(description="Held at the most they can use: by calls under way, and for good by calls nobody heard of.")
    ]
    day: Annotated[date | None, Field(description="The day (UTC) that `spent` and `reserved` are of; null where the period is total.")]
    created_at: datetime
    updated_at: datetime


class Budgets(Paged):
    """Budgets, the newest first."""

    items: list[Budget]
