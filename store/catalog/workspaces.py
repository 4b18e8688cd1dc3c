"""Workspaces and their API keys."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import available_timezones

from sqlalchemy import and_, func, insert, or_, select, text, update
from sqlalchemy.exc import DataError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils.compat import uuid7

from engine.enums import AccessRole
from engine.errors import Conflict, NotFound, Rejected
from models import ApiKeyRow, PermissionRow, UserRow, WorkspaceRow
from store.database import Database
from store.tenancy import workspace_of_api_key

ROLES = tuple(AccessRole)
"""From the role that allows most to the one that allows least."""
KEY_MAX_LENGTH = 200
TOUCH_EVERY_S = 60
WINTER_ONLY = {"CET", "EET", "MET", "WET"}  # Postgres reads these as abbreviations: winter time all year


@dataclass(frozen=True, slots=True)
class Created:
    """A new workspace. `api_key` is shown only here."""

    workspace_id: UUID
    api_key: str


@dataclass(frozen=True, slots=True)
class CreatedKey:
    """A new API key. `text` is shown only here."""

    id: UUID
    text: str


@dataclass(frozen=True, slots=True)
class Caller:
    """The owner of an API key and its rights. `role` is None if the key's user has no permission in the workspace (any more)."""

    workspace_id: UUID
    key_id: UUID
    user_id: UUID | None
    role: AccessRole | None
    last_used_at: datetime | None

    @property
    def may_read(self) -> bool:
        """Return whether the key may read."""
        return self.role is not None

    @property
    def may_write(self) -> bool:
        """Return whether the key may change anything."""
        return self.role in (AccessRole.ADMIN, AccessRole.WRITE)


async def create(database: Database, name: str, *, owner_email: str | None = None) -> Created:
    """Create a workspace with a first API key of role admin, and with its owner if an address is given.

    Raises:
        Rejected: the name is blank or longer than 100 characters.
        Conflict: the address is known already.
    """
    if not name.strip() or len(name) > 100:
        raise Rejected("A workspace's name must have 1 to 100 characters.")
    workspace_id = uuid7()
    first = _new_key(workspace_id, AccessRole.ADMIN, "first key", None)
    async with database.transaction(workspace_id) as db:
        owner_id = None
        if owner_email is not None:
            owner_id = uuid7()
            try:
                await db.execute(insert(UserRow).values(id=owner_id, name=owner_email.partition("@")[0], email=owner_email))
            except IntegrityError:
                raise Conflict("A user with this address is known already.") from None
        await db.execute(insert(WorkspaceRow).values(id=workspace_id, name=name, owner_id=owner_id))
        if owner_id is not None:
            await db.execute(
                insert(PermissionRow).values(
                    workspace_id=workspace_id, user_id=owner_id, entity_id=workspace_id, permission_type=AccessRole.ADMIN
                )
            )
        await db.execute(insert(ApiKeyRow).values(first.row))
    return Created(workspace_id, first.text)


def _unknown_zone(zone: str) -> Rejected:
    return Rejected(f"{zone!r} is not the time zone of a place: use one like America/New_York, or UTC.")


async def timezone(database: Database, workspace_id: UUID, zone: str | None = None) -> str:
    """Set the workspace's time zone to `zone`, if given, and return it. The next roll-up recomputes its days.

    Raises:
        Rejected: there is no such workspace, or no such zone in the IANA database, or one that the table does not take, like EST5EDT.
    """
    if zone is not None and zone not in available_timezones():
        raise Rejected(f"{zone!r} is not a time zone of the IANA database, like Europe/Berlin.")
    async with database.transaction(workspace_id) as db:
        if zone is not None:
            if zone in WINTER_ONLY:
                raise _unknown_zone(zone)
            try:
                await db.execute(update(WorkspaceRow).where(WorkspaceRow.id == workspace_id).values(timezone=zone))
            except (IntegrityError, DataError):  # the table takes no abbreviations, Postgres no "localtime", nor zones newer than it is
                raise _unknown_zone(zone) from None
        stored = await db.scalar(select(WorkspaceRow.timezone).where(WorkspaceRow.id == workspace_id))
    if stored is None:
        raise Rejected(f"There is no workspace {workspace_id}.")
    return stored


async def retention_days(db: AsyncConnection, workspace_id: UUID) -> int | None:
    """Return for how many days the workspace keeps ended sessions; None: as long as their agents do. Raises NotFound."""
    row = (await db.execute(select(WorkspaceRow.data_retention_days).where(WorkspaceRow.id == workspace_id))).one_or_none()
    if row is None:
        raise NotFound("no such workspace")
    days: int | None = row.data_retention_days
    return days


async def set_retention_days(db: AsyncConnection, workspace_id: UUID, days: int | None) -> None:
    """Keep ended sessions for `days` (1 to 365) at most, or (None) as long as their agents do."""
    await db.execute(text("UPDATE workspaces SET data_retention_days = :days WHERE id = :id"), {"days": days, "id": workspace_id})


async def create_api_key(
    database: Database, workspace_id: UUID, *, role: AccessRole = AccessRole.ADMIN, name: str = "", user_id: UUID | None = None
) -> CreatedKey:
    """Create an API key. With `user_id` it never allows more than that user's permission."""
    made = _new_key(workspace_id, role, name, user_id)
    async with database.transaction(workspace_id) as db:
        await db.execute(insert(ApiKeyRow).values(made.row))
    return CreatedKey(made.id, made.text)


async def revoke_api_key(database: Database, workspace_id: UUID, key_id: UUID) -> bool:
    """Revoke a key for good. Return False if there is none or it was revoked before. API processes notice within seconds."""
    async with database.transaction(workspace_id) as db:
        done = await db.execute(
            update(ApiKeyRow).where(ApiKeyRow.id == key_id, ApiKeyRow.revoked_at.is_(None)).values(revoked_at=func.now())
        )
    return done.rowcount > 0


async def caller_of(database: Database, key_text: str) -> Caller | None:
    """Return the caller of a key, or None if there is no such key or it was revoked.

    The key is looked up by its SHA-256, so the time that takes reveals nothing about existing keys.
    """
    if not key_text.startswith("tl_") or len(key_text) > KEY_MAX_LENGTH:
        return None
    digest = digest_of(key_text)
    workspace_id = await workspace_of_api_key(database, digest)
    if workspace_id is None:
        return None
    permission = and_(
        PermissionRow.user_id == ApiKeyRow.user_id,
        PermissionRow.entity_type == "workspace",
        PermissionRow.entity_id == ApiKeyRow.workspace_id,
    )
    query = (
        select(ApiKeyRow.id, ApiKeyRow.user_id, ApiKeyRow.role, ApiKeyRow.last_used_at, PermissionRow.permission_type)
        .outerjoin(PermissionRow, permission)
        .where(ApiKeyRow.secret_sha256 == digest, ApiKeyRow.revoked_at.is_(None))
    )
    async with database.transaction(workspace_id) as db:
        row = (await db.execute(query)).one_or_none()
    if row is None:
        return None
    allowed = [row.role] if row.user_id is None else [row.role, row.permission_type]
    role = None if None in allowed else AccessRole(max(allowed, key=ROLES.index))
    return Caller(workspace_id, row.id, row.user_id, role, row.last_used_at)


async def signature(db: AsyncConnection, caller: Caller) -> str:
    """Return the caller's name for a session's log: the key's name and prefix, and its user, if any."""
    key = (await db.execute(select(ApiKeyRow.name, ApiKeyRow.prefix).where(ApiKeyRow.id == caller.key_id))).one()
    named = f"{key.name} ({key.prefix})" if key.name else str(key.prefix)
    return named if caller.user_id is None else f"user {caller.user_id}, {named}"


async def touch(database: Database, workspace_id: UUID, key_id: UUID) -> None:
    """Record that the key was used, at most once a minute."""
    long_ago = or_(ApiKeyRow.last_used_at.is_(None), ApiKeyRow.last_used_at < func.now() - text(f"interval '{TOUCH_EVERY_S} seconds'"))
    async with database.transaction(workspace_id) as db:
        await db.execute(update(ApiKeyRow).where(ApiKeyRow.id == key_id, long_ago).values(last_used_at=func.now()))


def digest_of(key_text: str) -> bytes:
    """Return the digest under which a key is stored. A key has 256 random bits, so a plain hash cannot be searched."""
    return sha256(key_text.encode("utf-8", "surrogatepass")).digest()


class _NewKey(NamedTuple):
    id: UUID
    text: str
    row: dict[str, Any]


def _new_key(workspace_id: UUID, role: AccessRole, name: str, user_id: UUID | None) -> _NewKey:
    key_id, prefix = uuid7(), f"tl_{secrets.token_hex(4)}"
    key_text = f"{prefix}_{secrets.token_urlsafe(32)}"
    row = {"id": key_id, "workspace_id": workspace_id, "user_id": user_id, "name": name, "role": role}
    return _NewKey(key_id, key_text, {**row, "prefix": prefix, "secret_sha256": digest_of(key_text)})
