"""Tools, the integrations that carry them out, and which agent may use which tool."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from engine.enums import Effect, HealthStatus, IntegrationType, ToolType
from models.base import Base, BigCount, Count, CreatedAt, Id, JsonObject, UpdatedAt, one_of


class ToolRow(Base):
    """A tool as the model sees it, with the `effect` of repeating a call."""

    __tablename__ = "tools"
    id: Mapped[Id]
    workspace_id: Mapped[UUID] = mapped_column(ForeignKey("workspaces.id"))
    name: Mapped[str]
    display_name: Mapped[str | None]
    description: Mapped[str] = mapped_column(server_default=text("''"))
    tool_type: Mapped[str] = mapped_column(server_default=text("'custom'"))
    parameters: Mapped[JsonObject]
    return_schema: Mapped[dict[str, Any] | None]
    usage_guidelines: Mapped[str | None]
    error_handling: Mapped[JsonObject]
    effect: Mapped[str] = mapped_column(server_default=text("'unsafe'"))
    enabled: Mapped[bool] = mapped_column(server_default=text("true"))
    is_public: Mapped[bool] = mapped_column(server_default=text("false"))
    use_count: Mapped[BigCount]
    success_rate: Mapped[Decimal | None]
    last_used_at: Mapped[datetime | None]
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]

    __table_args__ = (
        UniqueConstraint("workspace_id", "name"),
        UniqueConstraint("workspace_id", "id"),
        Index("ix_tools_page", "workspace_id", "created_at", "id"),
        CheckConstraint(one_of("tool_type", ToolType), "tool_type"),
        CheckConstraint(one_of("effect", Effect), "effect"),
    )


class ToolIntegrationRow(Base):
    """The target that a tool is mapped to. `secrets` holds ciphertexts by name (see `store/encryption.py`), never a plain value."""

    __tablename__ = "tool_integrations"
    id: Mapped[Id]
    workspace_id: Mapped[UUID]
    tool_id: Mapped[UUID]
    integration_type: Mapped[str]
    target_id: Mapped[str]
    configuration: Mapped[JsonObject]
    secrets: Mapped[JsonObject]
    enabled: Mapped[bool] = mapped_column(server_default=text("true"))
    priority: Mapped[Count]
    parameter_mapping: Mapped[Any | None] = mapped_column(JSONB(none_as_null=True))
    response_mapping: Mapped[Any | None] = mapped_column(JSONB(none_as_null=True))
    last_health_check: Mapped[datetime | None]
    health_status: Mapped[str] = mapped_column(server_default=text("'unknown'"))
    error_count: Mapped[Count]
    last_error: Mapped[str | None]
    answers_in_row: Mapped[Count]
    next_health_check: Mapped[datetime | None] = mapped_column(index=True)
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]

    __table_args__ = (
        ForeignKeyConstraint(["workspace_id", "tool_id"], ["tools.workspace_id", "tools.id"], ondelete="CASCADE"),
        UniqueConstraint("workspace_id", "tool_id", "integration_type", "target_id"),
        CheckConstraint(one_of("integration_type", IntegrationType), "integration_type"),
        CheckConstraint(one_of("health_status", HealthStatus), "health_status"),
    )


class ToolHealthChangeRow(Base):
    """A change of an integration's health. It stays when the integration is deleted."""

    __tablename__ = "tool_health_changes"
    id: Mapped[Id]
    workspace_id: Mapped[UUID]
    tool_id: Mapped[UUID]
    integration_id: Mapped[UUID]
    from_status: Mapped[str]
    to_status: Mapped[str]
    error: Mapped[str | None]
    created_at: Mapped[CreatedAt]

    __table_args__ = (
        ForeignKeyConstraint(["workspace_id", "tool_id"], ["tools.workspace_id", "tools.id"], ondelete="CASCADE"),
        Index(None, "workspace_id", "id"),
        Index(None, "workspace_id", "tool_id"),
    )


class AgentToolRow(Base):
    """An agent may use a tool."""

    __tablename__ = "agent_tools"
    id: Mapped[Id]
    workspace_id: Mapped[UUID]
    agent_id: Mapped[UUID]
    tool_id: Mapped[UUID]
    configuration: Mapped[JsonObject]
    enabled: Mapped[bool] = mapped_column(server_default=text("true"))
    priority: Mapped[Count]
    use_count: Mapped[BigCount]
    last_used_at: Mapped[datetime | None]
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]

    __table_args__ = (
        ForeignKeyConstraint(["workspace_id", "agent_id"], ["agents.workspace_id", "agents.id"]),
        ForeignKeyConstraint(["workspace_id", "tool_id"], ["tools.workspace_id", "tools.id"]),
        UniqueConstraint("workspace_id", "agent_id", "tool_id"),
        Index("ix_agent_tools_workspace_id_tool_id", "workspace_id", "tool_id"),
    )
