"""Lookups that must work before the workspace is known. Each returns the id of a workspace and nothing else."""

from __future__ import annotations

from uuid import UUID

from store.database import Database


async def workspace_of_session(database: Database, session_id: UUID) -> UUID | None:
    """Return the workspace of a session, or None if there is no such session."""
    found: UUID | None = (await database.call("SELECT workspace_of_session($1) AS id", session_id))["id"]
    return found


async def workspace_of_turn(database: Database, turn_id: UUID) -> UUID | None:
    """Return the workspace of a turn, or None if there is no such turn."""
    found: UUID | None = (await database.call("SELECT workspace_of_turn($1) AS id", turn_id))["id"]
    return found


async def workspace_of_api_key(database: Database, sha256: bytes) -> UUID | None:
    """Return the workspace of the API key with this digest, or None if there is none or it was revoked."""
    found: UUID | None = (await database.call("SELECT workspace_of_api_key($1) AS id", sha256))["id"]
    return found


async def workspace_of_integration(database: Database, integration_id: UUID) -> UUID | None:
    """Return the workspace of a tool's integration, or None if there is no such integration."""
    found: UUID | None = (await database.call("SELECT workspace_of_integration($1) AS id", integration_id))["id"]
    return found
