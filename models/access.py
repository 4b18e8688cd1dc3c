"""Workspaces (the tenants), users, their permissions, and API keys."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, LargeBinary, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from engine.enums import AccessRole
from models.base import Base, CreatedAt, Id, UpdatedAt, one_of


class UserRow(Base):
    """A person. The row belongs to no workspace: one person may serve several, and `permissions` says which."""

    __tablename__ = "users"
    id: Mapped[Id]
    name: Mapped[str]
    email: Mapped[str] = mapped_column(unique=True)
    email_verified: Mapped[bool] = mapped_column(server_default=text("false"))
    image: Mapped[str | None]
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]


class WorkspaceRow(Base):
    """A tenant. `timezone` is a name of the IANA database; analytics use the days of that zone.

    Ended sessions are deleted after `data_retention_days` or their agent's, whichever is shorter; null sets no limit.
    """

    __tablename__ = "workspaces"
    id: Mapped[Id]
    name: Mapped[str]
    timezone: Mapped[str] = mapped_column(server_default=text("'UTC'"))
    data_retention_days: Mapped[int | None]
    owner_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id"))
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]

    __table_args__ = (CheckConstraint("data_retention_days BETWEEN 1 AND 365", "data_retention_days"),)


class PermissionRow(Base):
    """A user's right to an entity of a workspace (so far, only the workspace itself)."""

    __tablename__ = "permissions"
    id: Mapped[Id]
    workspace_id: Mapped[UUID] = mapped_column(ForeignKey("workspaces.id"))
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id"), index=True)
    entity_type: Mapped[str] = mapped_column(server_default=text("'workspace'"))
    entity_id: Mapped[UUID]
    permission_type: Mapped[str]
    created_at: Mapped[CreatedAt]

    __table_args__ = (
        UniqueConstraint("workspace_id", "user_id", "entity_type", "entity_id"),
        CheckConstraint(one_of("permission_type", AccessRole), "permission_type"),
    )


class ApiKeyRow(Base):
    """A bearer key. Only the SHA-256 of its secret is stored; people recognise it by its `prefix`.

    A key with a `user_id` can do no more than that user's permission allows.
    """

    __tablename__ = "api_keys"
    id: Mapped[Id]
    workspace_id: Mapped[UUID] = mapped_column(ForeignKey("workspaces.id"))
    user_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id"))
    name: Mapped[str] = mapped_column(server_default=text("''"))
    prefix: Mapped[str]
    secret_sha256: Mapped[bytes] = mapped_column(LargeBinary)
    role: Mapped[str]
    created_at: Mapped[CreatedAt]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]

    __table_args__ = (
        # Without workspace_id: the key is looked up before the workspace is known, and a SHA-256 of 32 random bytes reveals nothing.
        Index("uq_api_keys_secret_sha256", "secret_sha256", unique=True),
        Index("ix_api_keys_workspace_id", "workspace_id"),
        CheckConstraint(one_of("role", AccessRole), "role"),
    )
