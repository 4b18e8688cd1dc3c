"""Tools, and the integrations they are mapped to."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field, StrictBool, StrictInt, StringConstraints

from api.schemas.common import PATCH, JsonObject, Money, Paged, RequestBody, ResponseBody, checked, example, only
from engine.enums import Effect, HealthStatus, IntegrationType, ToolType
from engine.tools.json_schema import check_mapping, check_schema
from store.catalog.tools import MAX_SECRETS

ToolName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
SupportedType = Annotated[
    IntegrationType,
    only(IntegrationType.CUSTOM_TOOL, what="The integration type"),
    Field(description="Only `custom_tool`, an HTTP request, is supported so far."),
]
EffectField = Annotated[
    Effect,
    Field(
        description="The effect of repeating a call. pure: none. idempotent: none if the same Idempotency-Key header is sent. queryable: "
        "it would happen twice, but the tool's server can be asked by that key whether the call happened; each integration's "
        "configuration says how (`status`). unsafe: it would happen twice, so a call is sent at most once."
    ),
]
Parameters = Annotated[
    dict[str, Any], checked(lambda value: check_schema(value, "parameters")), Field(description="JSON Schema of an object.")
]
ReturnSchema = Annotated[dict[str, Any], checked(lambda value: check_schema(value, "return_schema")), Field(description="JSON Schema.")]
Mapping = Annotated[
    str | dict[str, str] | None,
    checked(check_mapping),
    Field(description="A JMESPath expression, or an object of names and expressions; null passes the value on unchanged."),
]
SecretName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,100}$")]
SecretValue = Annotated[str, StringConstraints(min_length=1, max_length=4000)]
CONFIGURATION = (
    "Of a custom_tool: `url` (with {placeholders} in its path), `method`, `headers`, `query`, `timeout_s`, and `secret_headers`, whose "
    "values are names of secrets, or templates with {{name}}. Of a queryable tool also `status`, the request that tells whether a call "
    "happened: `url` and `query` (with {placeholders} of the arguments and {idempotency_key}), `method` (GET), `headers`, "
    "`secret_headers`, `done` (JMESPath: true if the call happened; without it, 200 means yes), `result` (JMESPath: the tool's result). "
    "404 means that the call did not happen."
)


class ToolFields(RequestBody):
    """The fields of a tool that have a default."""

    display_name: Annotated[str, Field(max_length=200)] | None = None
    description: Annotated[str, Field(max_length=2000, description="Tells the model what the tool does.")] = ""
    tool_type: ToolType = ToolType.CUSTOM
    parameters: Parameters = {"type": "object", "properties": {}}
    return_schema: ReturnSchema | None = None
    usage_guidelines: Annotated[str, Field(max_length=5000, description="Tells the model when to use the tool.")] | None = None
    error_handling: JsonObject = {}
    effect: EffectField = Effect.UNSAFE
    enabled: StrictBool = True


class ToolCreate(ToolFields):
    """A new tool."""

    model_config = example(
        name="orders_lookup",
        description="Looks an order up by its number.",
        effect="pure",
        parameters={"type": "object", "properties": {"order": {"type": "integer"}}, "required": ["order"]},
    )
    name: ToolName


class ToolChange(ToolFields):
    """The fields to change; fields that are left out stay as they are."""

    model_config = PATCH
    name: ToolName = ""


class IntegrationFields(RequestBody):
    """The fields of an integration that can be changed."""

    target_id: Annotated[str, StringConstraints(min_length=1, max_length=2000)] = ""
    configuration: Annotated[dict[str, Any], Field(description=CONFIGURATION)] = {}
    parameter_mapping: Mapping = None
    response_mapping: Mapping = None
    enabled: StrictBool = True
    priority: Annotated[StrictInt, Field(ge=-1000, le=1000, description="The integration with the greatest priority is tried first.")] = 0


class IntegrationCreate(IntegrationFields):
    """A new integration of a tool. `target_id` defaults to the configuration's `url`. Secrets can be written and not read."""

    model_config = example(
        integration_type="custom_tool",
        configuration={
            "url": "https://shop.example/orders/{order}",
            "method": "GET",
            "secret_headers": {"Authorization": "Bearer {{shop_key}}"},
        },
        response_mapping="{paid: paid, total: amounts.total}",
        secrets={"shop_key": "…"},
    )
    integration_type: SupportedType
    configuration: Annotated[dict[str, Any], Field(description=CONFIGURATION)]
    secrets: Annotated[dict[SecretName, SecretValue], Field(max_length=MAX_SECRETS)] = {}


class IntegrationChange(IntegrationFields):
    """The fields to change; fields that are left out stay. `secrets` replaces the ones it names, and removes those set to null."""

    model_config = PATCH
    secrets: Annotated[dict[SecretName, SecretValue | None], Field(max_length=2 * MAX_SECRETS)] = {}


class Tool(ResponseBody):
    """A tool's definition, as the model sees it."""

    id: UUID
    name: str
    display_name: str | None
    description: str
    tool_type: ToolType
    parameters: dict[str, Any]
    return_schema: dict[str, Any] | None
    usage_guidelines: str | None
    error_handling: dict[str, Any]
    effect: Effect
    enabled: bool
    use_count: int
    success_rate: Money | None
    last_used_at: datetime | None
    created_at: datetime
    updated_at: datetime


class Tools(Paged):
    """Tools, newest first."""

    items: list[Tool]


class SecretSet(ResponseBody):
    """A secret of this name is set. Its value is never shown."""

    set: Literal[True]


class Integration(ResponseBody):
    """An integration of a tool."""

    id: UUID
    tool_id: UUID
    integration_type: IntegrationType
    target_id: str
    configuration: dict[str, Any]
    secrets: dict[str, SecretSet]
    parameter_mapping: str | dict[str, str] | None
    response_mapping: str | dict[str, str] | None
    enabled: bool
    priority: int
    health_status: HealthStatus
    last_health_check: datetime | None
    error_count: int
    last_error: str | None
    created_at: datetime
    updated_at: datetime


class Integrations(ResponseBody):
    """A tool's integrations in the order in which they are tried."""

    items: list[Integration]


class HealthChange(ResponseBody):
    """A change of an integration's health."""

    id: UUID
    integration_id: UUID
    from_status: HealthStatus
    to_status: HealthStatus
    error: str | None
    created_at: datetime


class HealthChanges(ResponseBody):
    """The latest changes, newest first."""

    items: list[HealthChange]
