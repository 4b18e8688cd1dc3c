"""Statuses, kinds and strategies: the only place where their values are listed.

The tables' CHECK constraints and the API's schemas are derived from these classes, and a test compares them with the SQL. A value is a wire
format: it is stored in rows and sent to clients, so it may be added and never renamed.
"""

from __future__ import annotations

from enum import StrEnum


class TurnStatus(StrEnum):
    """The state of a turn. docs/architecture.md draws the transitions and who makes them."""

    QUEUED = "queued"  # to be run as soon as it is admitted and its `not_before` has passed
    RUNNING = "running"  # claimed by a worker
    WAITING = "waiting"  # parked until an approval is decided, or its `not_before`
    DONE = "done"  # answered
    FAILED = "failed"  # ended without a reply; repeating it would not help, or it waited too long
    DEAD = "dead"  # claimed too often without an outcome
    CANCELLED = "cancelled"  # ended on request


OPEN_TURNS = (TurnStatus.QUEUED, TurnStatus.RUNNING, TurnStatus.WAITING)


class Admission(StrEnum):
    """The admission of a queued turn: only an admitted one may be dispatched."""

    BLOCKED = "blocked"  # behind an open turn of the same session
    PENDING = "pending"  # waiting for room under the workspace's in-flight limit
    ADMITTED = "admitted"  # counted against that limit: dispatched, or about to be


class Strategy(StrEnum):
    """The handling of a message that arrives while a turn of its session is open."""

    COALESCE = "coalesce"
    ENQUEUE = "enqueue"
    REJECT = "reject"
    INTERRUPT = "interrupt"
    ROLLBACK = "rollback"


class CancelReason(StrEnum):
    """The reason for cancelling a turn, and the `error_class` of the cancelled turn. PAUSED parks the turn instead."""

    CANCELLED = "Cancelled"  # by a client or an operator
    INTERRUPTED = "Interrupted"  # by a message with the strategy interrupt
    ROLLED_BACK = "RolledBack"  # by a message with the strategy rollback
    TAKEN_OVER = "TakenOver"  # the session's mode became manual
    PAUSED = "Paused"  # the session's mode became paused


class SessionStatus(StrEnum):
    """The state of a session."""

    ACTIVE = "active"
    COMPLETED = "completed"  # takes no more messages
    ABANDONED = "abandoned"  # idle for long; active again with the next message


class SessionMode(StrEnum):
    """The answering party of a session: the agent (auto), a person (manual) or nobody (paused)."""

    AUTO = "auto"
    MANUAL = "manual"
    PAUSED = "paused"


class SessionType(StrEnum):
    """The purpose of a session."""

    CONVERSATION = "conversation"
    SUPPORT = "support"
    ONBOARDING = "onboarding"
    SURVEY = "survey"


class EventKind(StrEnum):
    """The kind of an event. docs/reference.md has the shape of `content` for each."""

    CUSTOMER_MESSAGE = "customer_message"
    AGENT_MESSAGE = "agent_message"
    TOOL_CALL = "tool_call"
    TOOL_RESULT = "tool_result"
    STATUS_UPDATE = "status_update"
    JOURNEY_TRANSITION = "journey_transition"
    VARIABLE_UPDATE = "variable_update"


class Source(StrEnum):
    """The author of an event."""

    CUSTOMER = "customer"
    AI_AGENT = "ai_agent"
    HUMAN_AGENT = "human_agent"
    HUMAN_AGENT_ON_BEHALF_OF_AI_AGENT = "human_agent_on_behalf_of_ai_agent"
    SYSTEM = "system"


class AgentStatus(StrEnum):
    """The state of an agent; only an active one answers."""

    ACTIVE = "active"
    INACTIVE = "inactive"
    ARCHIVED = "archived"


class CompositionMode(StrEnum):
    """The way in which an agent composes its replies."""

    FLUID = "fluid"
    STRICT = "strict"
    CANNED_FLUID = "canned_fluid"
    CANNED_COMPOSITED = "canned_composited"
    CANNED_STRICT = "canned_strict"


class ConversationStyle(StrEnum):
    """The tone of an agent."""

    CASUAL = "casual"
    PROFESSIONAL = "professional"
    TECHNICAL = "technical"
    FRIENDLY = "friendly"


class Effect(StrEnum):
    """The effect of repeating a tool call. It decides how to proceed if the answer to a call is lost."""

    PURE = "pure"  # nothing; repeat freely
    IDEMPOTENT = "idempotent"  # nothing, given the same idempotency key
    QUERYABLE = "queryable"  # the server can be asked whether the call happened
    UNSAFE = "unsafe"  # it would happen twice, so it is sent at most once


class ToolType(StrEnum):
    """The origin of a tool."""

    NATIVE = "native"
    CUSTOM = "custom"
    EXTERNAL = "external"


class IntegrationType(StrEnum):
    """The kind of integration that a tool is mapped to."""

    CUSTOM_TOOL = "custom_tool"
    WORKFLOW_BLOCK = "workflow_block"
    MCP_SERVER = "mcp_server"


class HealthStatus(StrEnum):
    """The health of a tool's integration."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"


class ToolStatus(StrEnum):
    """The result of a tool call, as the model and the log see it."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    DENIED = "denied"  # not made: over a limit, not approved, or the turn ended first
    UNKNOWN = "unknown"  # it may or may not have happened


class ToolCallState(StrEnum):
    """The state of a tool call's row: three before its result, then the four of `ToolStatus`."""

    REQUESTED = "requested"  # put off; not sent yet
    AWAITING_APPROVAL = "awaiting_approval"  # a person decides first
    RUNNING = "running"  # sent, or about to be; whether it happened is not known
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    DENIED = "denied"
    UNKNOWN = "unknown"


class ModelCallState(StrEnum):
    """The state of a model call's row in the ledger."""

    RESERVED = "reserved"  # before the request
    SETTLED = "settled"  # answered; its usage is booked
    UNKNOWN = "unknown"  # it may have been answered, and billed
    FAILED = "failed"  # it was not carried out


class FinishReason(StrEnum):
    """The reason why the model stopped generating."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"


class ApprovalStatus(StrEnum):
    """The state of an approval."""

    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


class Role(StrEnum):
    """The author of a message in the model's input."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class AccessRole(StrEnum):
    """The rights of an API key or a permission; each role includes those after it."""

    ADMIN = "admin"
    WRITE = "write"
    READ = "read"


class BudgetScope(StrEnum):
    """The scope that a budget limits."""

    WORKSPACE = "workspace"
    AGENT = "agent"
    SESSION = "session"


class BudgetUnit(StrEnum):
    """The unit that a budget counts."""

    USD = "usd"
    TOKENS = "tokens"


class BudgetPeriod(StrEnum):
    """The period of a budget: it starts again at midnight UTC, or never."""

    DAY = "day"
    TOTAL = "total"


class DeletionReason(StrEnum):
    """The reason for deleting a session."""

    RETENTION = "retention"
    ERASE = "erase"


class Grain(StrEnum):
    """The period that one row of a rollup sums up."""

    QUARTER = "quarter"  # of an hour
    DAY = "day"
    TOTAL = "total"


class ModelProvider(StrEnum):
    """A vendor of models that an agent may name."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    OLLAMA = "ollama"
    XAI = "xai"
    BEDROCK = "bedrock"
