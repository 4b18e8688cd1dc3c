"""Workspaces, their keys, and the rights of a key."""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, available_timezones

import psycopg
import pytest
from sqlalchemy import insert, select, update
from uuid_utils.compat import uuid7

from engine.enums import AccessRole
from engine.errors import Conflict, Rejected
from models import ApiKeyRow, PermissionRow, UserRow, WorkspaceRow
from store.catalog import workspaces
from store.database import Database
from store.tenancy import workspace_of_api_key


async def caller_of(database: Database, key: str) -> workspaces.Caller:
    """Return the caller that a valid key belongs to."""
    caller = await workspaces.caller_of(database, key)
    assert caller is not None
    return caller


async def test_first_key_of_workspace_is_admin(database):
    made = await workspaces.create(database, "Acme")

    assert re.fullmatch(r"tl_[0-9a-f]{8}_[A-Za-z0-9_-]{43}", made.api_key)
    caller = await caller_of(database, made.api_key)
    assert (caller.workspace_id, caller.role, caller.user_id, caller.last_used_at) == (made.workspace_id, "admin", None, None)
    assert caller.may_read
    assert caller.may_write


async def test_only_digest_and_prefix_of_key_are_stored(database, database_url):
    made = await workspaces.create(database, "Acme")

    prefix, secret = made.api_key[:11], made.api_key[12:]
    with psycopg.connect(database_url) as db:
        rows = db.execute("SELECT row_to_json(k)::text, prefix FROM api_keys k WHERE workspace_id = %s", (made.workspace_id,)).fetchall()
    ((stored, kept),) = rows
    assert kept == prefix
    assert secret not in stored
    assert workspaces.digest_of(made.api_key).hex() in stored


async def test_only_time_zones_common_to_postgres_and_python_are_accepted(database, database_url):
    made = (await workspaces.create(database, "Acme")).workspace_id
    taken = []
    for zone in sorted(available_timezones()):
        with contextlib.suppress(Rejected):
            taken.append(await workspaces.timezone(database, made, zone))
    refused = available_timezones() - set(taken)

    assert not [zone for zone in refused if "/" in zone or zone == "UTC"]
    with psycopg.connect(database_url) as db:
        for at in (datetime(2026, 1, 15, tzinfo=UTC), datetime(2026, 7, 15, tzinfo=UTC)):
            local_times: dict[str, datetime] = dict(
                db.execute("SELECT zone, %s::timestamptz AT TIME ZONE zone FROM unnest(%s::text[]) zone", (at, taken)).fetchall()
            )
            assert local_times == {zone: at.astimezone(ZoneInfo(zone)).replace(tzinfo=None) for zone in taken}
    for zone in ("EST5EDT", "CET"):
        with pytest.raises(Rejected, match=f"'{zone}' is not the time zone of a place"):
            await workspaces.timezone(database, made, zone)


async def test_wrong_key_finds_no_caller(database):
    key = (await workspaces.create(database, "Acme")).api_key

    for wrong in ("", "tl_", key[:-1], key + "x", key.upper(), f" {key}", "tl_" + "x" * 10_000, "tl_\x00", "tl_\ud800", "Bearer " + key):
        assert await workspaces.caller_of(database, wrong) is None, wrong


@pytest.mark.parametrize(
    ("key", "user", "role"),
    [
        ("admin", "admin", "admin"),
        ("admin", "write", "write"),
        ("admin", "read", "read"),
        ("write", "admin", "write"),
        ("read", "admin", "read"),
        ("admin", None, None),
    ],
)
async def test_users_key_allows_no_more_than_user(database, key, user, role):
    made = await workspaces.create(database, "Acme")
    user_id = await _user(database, made.workspace_id, user)

    text = (await workspaces.create_api_key(database, made.workspace_id, role=key, user_id=user_id)).text

    caller = await caller_of(database, text)
    assert (caller.role, caller.user_id) == (role, user_id)
    assert caller.may_read == (role is not None)
    assert caller.may_write == (role in ("admin", "write"))


async def test_revoked_permission_applies_to_users_keys(database, database_url):
    made = await workspaces.create(database, "Acme")
    user_id = await _user(database, made.workspace_id, "write")
    text = (await workspaces.create_api_key(database, made.workspace_id, user_id=user_id)).text
    assert (await caller_of(database, text)).may_write

    with psycopg.connect(database_url) as db:
        db.execute("DELETE FROM permissions WHERE user_id = %s", (user_id,))

    assert not (await caller_of(database, text)).may_read


async def test_permission_in_other_workspace_does_not_count(database):
    made, elsewhere = await workspaces.create(database, "Acme"), await workspaces.create(database, "Other")
    user_id = await _user(database, elsewhere.workspace_id, "admin")

    text = (await workspaces.create_api_key(database, made.workspace_id, user_id=user_id)).text

    assert (await caller_of(database, text)).role is None


async def test_revoked_key_is_refused(database):
    made, other = await workspaces.create(database, "Acme"), await workspaces.create(database, "Other")
    key = await workspaces.create_api_key(database, made.workspace_id, role=AccessRole.READ)

    assert not await workspaces.revoke_api_key(database, other.workspace_id, key.id)
    assert await workspaces.caller_of(database, key.text) is not None
    assert await workspaces.revoke_api_key(database, made.workspace_id, key.id)
    assert not await workspaces.revoke_api_key(database, made.workspace_id, key.id)
    assert await workspaces.caller_of(database, key.text) is None
    assert await workspace_of_api_key(database, workspaces.digest_of(key.text)) is None
    assert await workspaces.caller_of(database, made.api_key) is not None


async def test_key_use_is_recorded_at_most_once_a_minute(database):
    made = await workspaces.create(database, "Acme")
    caller = await caller_of(database, made.api_key)

    await workspaces.touch(database, made.workspace_id, caller.key_id)
    first = (await caller_of(database, made.api_key)).last_used_at
    await workspaces.touch(database, made.workspace_id, caller.key_id)
    again = (await caller_of(database, made.api_key)).last_used_at

    assert first is not None
    assert again == first
    async with database.transaction(made.workspace_id) as db:
        await db.execute(update(ApiKeyRow).values(last_used_at=first.replace(year=first.year - 1)))
    await workspaces.touch(database, made.workspace_id, caller.key_id)
    later = (await caller_of(database, made.api_key)).last_used_at
    assert later is not None
    assert later > first


async def test_a_workspace_may_have_an_owner_who_is_its_admin(database):
    made = await workspaces.create(database, "Acme", owner_email="ada@shop.example")

    async with database.transaction(made.workspace_id) as db:
        owner_id = await db.scalar(select(WorkspaceRow.owner_id))
        found = (await db.execute(select(PermissionRow.user_id, PermissionRow.permission_type))).all()
        user = (await db.execute(select(UserRow.name, UserRow.email))).one()
    assert found == [(owner_id, "admin")]
    assert tuple(user) == ("ada", "ada@shop.example")
    with pytest.raises(Conflict):
        await workspaces.create(database, "Another", owner_email="ada@shop.example")


@pytest.mark.parametrize("name", ["", "  ", "n" * 101])
async def test_a_workspace_needs_a_name(database, name):
    with pytest.raises(Rejected):
        await workspaces.create(database, name)


async def test_rights_of_each_role(database):
    caller = await caller_of(database, (await workspaces.create(database, "Acme")).api_key)

    may = {role: (replace(caller, role=role).may_read, replace(caller, role=role).may_write) for role in (*workspaces.ROLES, None)}

    assert may == {"admin": (True, True), "write": (True, True), "read": (True, False), None: (False, False)}


async def _user(database, workspace_id, permission):
    user_id = uuid7()
    async with database.transaction(workspace_id) as db:
        await db.execute(insert(UserRow).values(id=user_id, name="Ada", email=f"{user_id}@shop.example"))
        if permission is not None:
            await db.execute(
                insert(PermissionRow).values(workspace_id=workspace_id, user_id=user_id, entity_id=workspace_id, permission_type=permission)
            )
    return user_id
