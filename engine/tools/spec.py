"""The definition of a tool as a turn uses it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from engine.enums import Effect


@dataclass(frozen=True, slots=True)
class IntegrationSpec:
    """One thing that a tool is mapped to. `secrets` are decrypted and stay in the worker's memory.

    `degraded`: its health when the turn was claimed, so an answer of it is recorded at once.
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
    """A tool as the model sees it (`name`, `description`, `parameters`), and its integrations.

    `approval`: a person must approve each call. `offered` is False if every integration is unhealthy.
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
