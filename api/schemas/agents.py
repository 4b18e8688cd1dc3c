"""Agents, and the tools assigned to them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import Field, StrictBool, StrictInt, StringConstraints, model_validator

from api.schemas.common import PATCH, JsonObject, Money, Paged, RequestBody, ResponseBody, checked, example, only
from api.schemas.tools import Tool
from engine.enums import AgentStatus, CompositionMode, ConversationStyle, ModelProvider, Strategy
from engine.errors import Rejected

Name = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=r"\S")]
Provider = Annotated[
    ModelProvider, only(ModelProvider.OPENAI, what="The provider"), Field(description="Only `openai` is supported so far.")
]
ToolIds = Annotated[list[UUID], Field(max_length=100, description="Repeated ids count once.")]


class AgentFields(RequestBody):
    """The fields of an agent that have a default."""

    description: Annotated[str, Field(max_length=500)] | None = None
    status: AgentStatus = AgentStatus.ACTIVE
    composition_mode: CompositionMode = CompositionMode.FLUID
    system_prompt: Annotated[str, Field(max_length=5000)] | None = None
    model_provider: Provider = ModelProvider.OPENAI
    model_name: Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"\S")] = "gpt-4"
    temperature: Annotated[StrictInt, Field(ge=0, le=100, description="Sent to the provider divided by 100.")] = 70
    max_tokens: Annotated[StrictInt, Field(ge=1, le=100_000)] = 2000
    conversation_style: ConversationStyle = ConversationStyle.PROFESSIONAL
    strategy: Annotated[
        Strategy,
        Field(
            description="For a message that arrives while a turn is open. coalesce: the open turn reads it, or one next turn answers all "
            "such messages. enqueue: each message gets its own turn. reject: refused with 409. interrupt: the open turn is cancelled, and "
            "the next one sees what it had replied so far. rollback: the open turn is cancelled, and the next one sees nothing of it; "
            "refused with 409 once an unsafe tool has run. If `allow_interruption` is false, interrupt and rollback act like coalesce."
        ),
    ] = Strategy.COALESCE
    allow_interruption: StrictBool = True
    allow_proactive_messages: StrictBool = False
    data_retention_days: Annotated[StrictInt, Field(ge=1, le=365)] = 30


class AgentCreate(AgentFields):
    """A new agent. `default_tools` is an alias of `tool_ids`."""

    model_config = example(
        name="Ada", description="Answers about orders.", system_prompt="You help customers of a shop. Be brief.", model_name="gpt-4o-mini"
    )
    name: Name
    tool_ids: ToolIds = []
    default_tools: ToolIds = []

    @model_validator(mode="after")
    def _one_list(self) -> Self:
        if self.tool_ids and self.default_tools:
            raise ValueError("Send tool_ids or default_tools, not both.")
        return self


class AgentChange(AgentFields):
    """The fields to change; fields that are left out stay as they are."""

    model_config = PATCH
    name: Name = ""


def _check_approval(configuration: dict[str, Any] | None) -> None:
    if configuration is not None and configuration.get("approval", "never") not in ("required", "never"):
        raise Rejected('approval must be "required" or "never".')


class ToolAssignment(RequestBody):
    """All tools that an agent may use. Without `configuration`, tools that were assigned before keep theirs."""

    tool_ids: ToolIds
    configuration: Annotated[
        JsonObject | None,
        checked(_check_approval),
        Field(
            description='Stored with each assigned tool. `approval`: "required" (a person approves each call) or "never"; by default, '
            "unsafe tools require approval and others do not."
        ),
    ] = None


class Agent(ResponseBody):
    """An agent. `version` grows with every change."""

    id: UUID
    name: str
    description: str | None
    status: AgentStatus
    composition_mode: CompositionMode
    system_prompt: str | None
    model_provider: ModelProvider
    model_name: str
    temperature: int
    max_tokens: int
    conversation_style: ConversationStyle
    strategy: Strategy
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
    """Agents, newest first."""

    items: list[Agent]


class AgentWithStats(Agent):
    """An agent with current totals."""

    active_sessions: int
    recent_activity: Annotated[datetime | None, Field(description="The time of the latest activity in its sessions.")]
    tool_count: int


class AgentsWithStats(Paged):
    """Agents with current totals, newest first."""

    items: list[AgentWithStats]


class AssignedTool(Tool):
    """A tool, and the configuration with which an agent may use it."""

    configuration: dict[str, Any]
    assignment_enabled: bool


class AssignedTools(ResponseBody):
    """The tools of an agent, by name."""

    items: list[AssignedTool]
