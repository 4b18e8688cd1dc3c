"""What requests may say. Unknown fields are refused; whole numbers and truth values must be sent as such."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from functools import lru_cache
from typing import Annotated, Any, Literal, Self, TypeVar
from uuid import UUID
from zoneinfo import available_timezones

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)

from engine.errors import Rejected
from engine.safe_json import check_json_value
from engine.tools.json_schema import check_mapping, check_schema
from store.catalog.tools import MAX_SECRETS
from store.conversations.approvals import REASON_MAX_LENGTH
from store.conversations.intake import KEY_MAX_LENGTH, METADATA_MAX_BYTES, TEXT_MAX_BYTES
from store.database import dumps

Status = Literal["active", "inactive", "archived"]
SessionStatus = Literal["active", "completed", "abandoned"]
Strategy = Literal["coalesce", "enqueue", "reject", "interrupt", "rollback"]
Mode = Literal["auto", "manual", "paused"]
Author = Literal["customer", "human_agent", "human_agent_on_behalf_of_ai_agent"]
ApprovalStatus = Literal["pending", "approved", "denied", "expired", "cancelled"]
Value = TypeVar("Value")


def _checked(check: Callable[[Value], None]) -> AfterValidator:
    """A validator of `check`, whose Rejected becomes an error with a place."""

    def validate(value: Value) -> Value:
        try:
            check(value)
        except Rejected as error:
            raise ValueError(str(error)) from None
        return value

    return AfterValidator(validate)


def _offered(*offered: str, what: str) -> AfterValidator:
    """A validator that names what is offered so far, of what will be."""

    def check(value: str) -> None:
        if value not in offered:
            raise Rejected(f"{what} {value} is not offered yet; {' and '.join(offered)} can be used so far.")

    return _checked(check)


def _small(value: dict[str, Any]) -> None:
    if len(dumps(value).encode()) > METADATA_MAX_BYTES:
        raise Rejected(f"It is longer than {METADATA_MAX_BYTES} bytes.")


@lru_cache(maxsize=1)
def _timezones() -> frozenset[str]:
    return frozenset(available_timezones())


def _known_timezone(value: str) -> None:
    if value not in _timezones():
        raise Rejected("It is not a time zone of the IANA database, like Europe/Berlin.")


def _short_enough(value: str) -> None:
    if not value.strip():
        raise Rejected("It must not be blank.")
    if len(value.encode()) > TEXT_MAX_BYTES:
        raise Rejected(f"It is longer than {TEXT_MAX_BYTES} bytes.")


# U+0000 and its like: bodies are looked at whole before they come here, query strings are not.
Storable = _checked(check_json_value)
JsonObject = Annotated[dict[str, Any], _checked(_small), Field(description=f"Any JSON object of at most {METADATA_MAX_BYTES} bytes.")]
Name = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=r"\S")]
ToolName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
Provider = Annotated[
    Literal["openai", "anthropic", "ollama", "xai", "bedrock"],
    _offered("openai", what="The provider"),
    Field(description="So far only `openai` can be used."),
]
IntegrationType = Annotated[
    Literal["custom_tool", "workflow_block", "mcp_server"],
    _offered("custom_tool", what="The integration type"),
    Field(description="So far only `custom_tool`, an HTTP call, can be used."),
]
Effect = Annotated[
    Literal["pure", "idempotent", "queryable", "unsafe"],
    Field(
        description="What repeating a call would do. pure: nothing. idempotent: nothing, given the same Idempotency-Key header. "
        "queryable: it would happen twice, but the tool's server can be asked by that key whether it happened; each integration's "
        "configuration says how (`status`). unsafe: it would happen twice, so it is sent at most once."
    ),
]
Parameters = Annotated[
    dict[str, Any], _checked(lambda value: check_schema(value, "parameters")), Field(description="JSON Schema of an object.")
]
ReturnSchema = Annotated[dict[str, Any], _checked(lambda value: check_schema(value, "return_schema")), Field(description="JSON Schema.")]
Mapping = Annotated[
    str | dict[str, str] | None,
    _checked(check_mapping),
    Field(description="A JMESPath expression, or an object of names and expressions; null passes everything on as it is."),
]
SecretName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,100}$")]
SecretValue = Annotated[str, StringConstraints(min_length=1, max_length=4000)]
Tag = Annotated[str, StringConstraints(min_length=1, max_length=50, pattern=r"\S")]
ToolIds = Annotated[list[UUID], Field(max_length=100, description="Ids named twice count once.")]


class Body(BaseModel):
    """A request's body."""

    model_config = ConfigDict(extra="forbid")

    def given(self) -> dict[str, Any]:
        """The fields that were sent, for a change."""
        return self.model_dump(exclude_unset=True)


def _without_defaults(schema: dict[str, Any]) -> None:
    """In a change, what is left out stays as it is."""
    for field in schema["properties"].values():
        field.pop("default", None)


_CHANGE = ConfigDict(json_schema_extra=_without_defaults)


def _example(**fields: Any) -> ConfigDict:
    """A body that shows what is usually sent."""
    return ConfigDict(json_schema_extra={"examples": [fields]})


class AgentFields(Body):
    """An agent's fields, all of which have a default."""

    description: Annotated[str, Field(max_length=500)] | None = None
    status: Status = "active"
    composition_mode: Literal["fluid", "strict", "canned_fluid", "canned_composited", "canned_strict"] = "fluid"
    system_prompt: Annotated[str, Field(max_length=5000)] | None = None
    model_provider: Provider = "openai"
    model_name: Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"\S")] = "gpt-4"
    temperature: Annotated[StrictInt, Field(ge=0, le=100, description="Sent to the provider divided by 100.")] = 70
    max_tokens: Annotated[StrictInt, Field(ge=1, le=100_000)] = 2000
    conversation_style: Literal["casual", "professional", "technical", "friendly"] = "professional"
    strategy: Annotated[
        Strategy,
        Field(
            description="For a message that arrives while a turn is open. coalesce: read by that turn, or answered by one next turn. "
            "enqueue: one reply to each. reject: refused with 409. interrupt: that turn is cancelled, and the next one sees what it had "
            "said so far. rollback: the same, and the next one sees nothing of it; refused with 409 once an unsafe tool has run. Where "
            "`allow_interruption` is false, interrupt and rollback do what coalesce does."
        ),
    ] = "coalesce"
    allow_interruption: StrictBool = True
    allow_proactive_messages: StrictBool = False
    data_retention_days: Annotated[StrictInt, Field(ge=1, le=365)] = 30


class AgentCreate(AgentFields):
    """A new agent. `default_tools` is another name of `tool_ids`."""

    model_config = _example(
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
    """The fields to change; what is left out stays."""

    model_config = _CHANGE
    name: Name = ""


def _says_who_approves(configuration: dict[str, Any] | None) -> None:
    if configuration is not None and configuration.get("approval", "never") not in ("required", "never"):
        raise Rejected('Its approval must be "required" or "never".')


class ToolAssignment(Body):
    """All the tools an agent may use. Without `configuration`, those that were assigned before keep theirs."""

    tool_ids: ToolIds
    configuration: Annotated[
        JsonObject | None,
        _checked(_says_who_approves),
        Field(
            description='Kept with each of them. `approval`: "required" (a person approves each call) or "never"; unless given, unsafe '
            "tools want approval and others do not."
        ),
    ] = None


class ToolFields(Body):
    """A tool's fields, all of which have a default."""

    display_name: Annotated[str, Field(max_length=200)] | None = None
    description: Annotated[str, Field(max_length=2000, description="What the model is told the tool does.")] = ""
    tool_type: Literal["native", "custom", "external"] = "custom"
    parameters: Parameters = {"type": "object", "properties": {}}
    return_schema: ReturnSchema | None = None
    usage_guidelines: Annotated[str, Field(max_length=5000, description="When to use it, for the model.")] | None = None
    error_handling: JsonObject = {}
    effect: Effect = "unsafe"
    enabled: StrictBool = True


class ToolCreate(ToolFields):
    """A new tool."""

    model_config = _example(
        name="orders_lookup",
        description="Looks an order up by its number.",
        effect="pure",
        parameters={"type": "object", "properties": {"order": {"type": "integer"}}, "required": ["order"]},
    )
    name: ToolName


class ToolChange(ToolFields):
    """The fields to change; what is left out stays."""

    model_config = _CHANGE
    name: ToolName = ""


class IntegrationFields(Body):
    """What a tool's integration may change."""

    target_id: Annotated[str, StringConstraints(min_length=1, max_length=2000)] = ""
    configuration: Annotated[
        dict[str, Any],
        Field(
            description="Of a custom_tool: `url` (with {placeholders} in its path), `method`, `headers`, `query`, `timeout_s`, and "
            "`secret_headers`, whose values are names of secrets or templates with {{name}}. Of a queryable tool also `status`, how to ask "
            "whether a call happened: `url` and `query` (with {placeholders} of the arguments and {idempotency_key}), `method` (GET), "
            "`headers`, `secret_headers`, `done` (JMESPath: what says that it happened; otherwise 200 says yes), `result` (JMESPath: the "
            "tool's result). 404 says that it did not happen."
        ),
    ] = {}
    parameter_mapping: Mapping = None
    response_mapping: Mapping = None
    enabled: StrictBool = True
    priority: Annotated[StrictInt, Field(ge=-1000, le=1000, description="The greatest is tried first.")] = 0


class IntegrationCreate(IntegrationFields):
    """What a tool is mapped to. `target_id` is the configuration's `url` unless given. Secrets are written and never read back."""

    model_config = _example(
        integration_type="custom_tool",
        configuration={
            "url": "https://shop.example/orders/{order}",
            "method": "GET",
            "secret_headers": {"Authorization": "Bearer {{shop_key}}"},
        },
        response_mapping="{paid: paid, total: amounts.total}",
        secrets={"shop_key": "…"},
    )
    integration_type: IntegrationType
    configuration: Annotated[dict[str, Any], Field(description=IntegrationFields.model_fields["configuration"].description)]
    secrets: Annotated[dict[SecretName, SecretValue], Field(max_length=MAX_SECRETS)] = {}


class IntegrationChange(IntegrationFields):
    """The fields to change; what is left out stays. `secrets` replaces those it names, and removes those it gives a null."""

    model_config = _CHANGE
    secrets: Annotated[dict[SecretName, SecretValue | None], Field(max_length=2 * MAX_SECRETS)] = {}


class SessionCreate(Body):
    """A new session with an agent."""

    model_config = _example(agent_id="01975e2e-7d5b-7c3a-9f3e-5b1f6c2a9d10", customer_id="c-1041", title="Order 41", locale="en")
    agent_id: UUID
    user_id: UUID | None = None
    customer_id: Annotated[str, Field(max_length=100)] | None = None
    title: Annotated[str, Field(max_length=200)] | None = None
    session_type: Literal["conversation", "support", "onboarding", "survey"] = "conversation"
    locale: Annotated[str, StringConstraints(pattern=r"^[a-z]{2}(-[A-Z]{2})?$"), Field(examples=["en", "pt-BR"])] = "en"
    timezone: Annotated[str, StringConstraints(min_length=1, max_length=50), _checked(_known_timezone)] = "UTC"
    metadata: JsonObject = {}
    variables: JsonObject = {}
    tags: Annotated[list[Tag], Field(max_length=20)] = []
    mode: Annotated[
        Mode,
        Field(description="auto: the agent answers. manual: a person does. paused: turns are opened and wait."),
    ] = "auto"


class SessionEnd(Body):
    """Why a session ends."""

    reason: Annotated[str, Field(max_length=500)] | None = None


class Redrive(Body):
    """How a turn is driven again."""

    from_scratch: Annotated[
        StrictBool,
        Field(
            description="Begin at its messages again, with the agent as it is now; what it had done is out of the model's sight. Refused "
            "where a tool has run that must not be repeated."
        ),
    ] = False


class Hold(Body):
    """Why a session is kept from being deleted."""

    reason: Annotated[str | None, Field(max_length=2000), Storable] = None


class Satisfaction(Body):
    """How satisfied the customer was."""

    score: Annotated[int, Field(strict=True, ge=1, le=5, description="From 1, not at all, to 5.")]


class ModeChange(Body):
    """Who answers from now on."""

    model_config = _example(mode="manual")
    mode: Annotated[
        Mode,
        Field(
            description="auto: the agent answers; what waited is carried on. manual: a person does; open turns end, and messages open "
            "none. paused: turns are opened and wait; one under way rests when its call in flight has been answered."
        ),
    ]


class MessageCreate(Body):
    """A customer's message, or a person's."""

    model_config = _example(text="Is order 41 paid?", message_key="web-7f3a9c", metadata={"page": "/orders/41"})
    text: Annotated[
        str,
        StringConstraints(min_length=1, max_length=TEXT_MAX_BYTES),
        _checked(_short_enough),
        Field(description=f"Not blank, and at most {TEXT_MAX_BYTES} bytes as UTF-8."),
    ]
    message_key: Annotated[
        str | None,
        Field(min_length=1, max_length=KEY_MAX_LENGTH, description="Sent again with the same key and text, a message is accepted once."),
    ] = None
    metadata: JsonObject = {}
    source: Annotated[
        Author,
        Field(
            description="human_agent: a person of yours writes to the customer, as themselves. human_agent_on_behalf_of_ai_agent: in the "
            "agent's name. Either becomes an agent_message at once and opens no turn."
        ),
    ] = "customer"
    strategy: Annotated[Strategy | None, Field(description="The agent's, unless given. For a customer's message only.")] = None

    @field_validator("strategy")
    @classmethod
    def _for_customers(cls, strategy: str | None, info: ValidationInfo) -> str | None:
        if strategy is not None and info.data.get("source", "customer") != "customer":
            raise ValueError("A person's message opens no turn, so it takes no strategy.")
        return strategy


class Decision(Body):
    """What a person decides about a tool call. `edited_arguments`, with an approval only, take the place of the model's."""

    model_config = _example(decision="approve", reason="Checked with the warehouse.")
    decision: Literal["approve", "deny"]
    reason: Annotated[
        str | None, Field(max_length=REASON_MAX_LENGTH, description="Kept in the session's log; of a denial, the model is told it.")
    ] = None
    edited_arguments: Annotated[
        JsonObject | None, Field(description="All arguments of the call, which must fit the tool's parameters; the model is told of them.")
    ] = None

    @model_validator(mode="after")
    def _edits_are_approved(self) -> Self:
        if self.edited_arguments is not None and self.decision != "approve":
            raise ValueError("edited_arguments can be sent with an approval only.")
        return self


Cap = Annotated[
    StrictInt | Annotated[str, StringConstraints(pattern=r"^[0-9]{1,10}(\.[0-9]{1,10})?$")],
    Field(description="US dollars as text, or whole tokens; at most ten digits before the point and ten after.", examples=["25.50"]),
]


class BudgetCreate(Body):
    """A cap on what model calls may use."""

    model_config = _example(scope="workspace", unit="usd", period="day", cap="25.50")
    scope: Literal["workspace", "agent", "session"]
    scope_id: Annotated[UUID | None, Field(description="The agent or session; of a workspace it may be left out.")] = None
    unit: Literal["usd", "tokens"]
    period: Annotated[Literal["day", "total"], Field(description="day: from midnight to midnight, UTC.")]
    cap: Cap

    @property
    def amount(self) -> Decimal:
        """The cap as a number."""
        return Decimal(self.cap)


class BudgetChange(Body):
    """Another cap."""

    cap: Cap

    @property
    def amount(self) -> Decimal:
        """The cap as a number."""
        return Decimal(self.cap)
