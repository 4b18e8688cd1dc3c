"""Postgres isolates tenants: every table, every verb, with no workspace, with the wrong one and with the right one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import text as sql
from sqlalchemy.exc import DBAPIError
from uuid_utils.compat import uuid7

from models import Base
from store.catalog import workspaces
from store.conversations import intake
from store.database import Database
from tests.support.factories import Tenant, tenant

ROLLUPS = ("agent_rollups", "model_rollups", "tool_rollups")
TENANT_TABLES = sorted(name for name, table in Base.metadata.tables.items() if "workspace_id" in table.c)


# The application's role may not change these rows.
WRITTEN_ONCE = (
    *("agent_snapshots", "deletions", "erasures", "events", "permissions", "tool_health_changes", "usage_facts", "users", "workspaces"),
    *ROLLUPS,
)


@pytest.fixture
async def filled(database: Database, maintenance: Database) -> Tenant:
    """Make a tenant with at least one row in each of its tables."""
    made = await tenant(database, tools=({"name": "orders_lookup", "integration": {}},))
    accepted = await intake.accept(database, made.workspace_id, made.session_id, "one")
    ids: dict[str, Any] = {
        "w": made.workspace_id,
        "s": made.session_id,
        "a": made.agent_id,
        "t": accepted.turn_id,
        "u": uuid7(),
        "key": uuid7().bytes,
    }
    async with database.transaction(made.workspace_id) as db:
        for statement in (
            "INSERT INTO model_calls (workspace_id, session_id, turn_id, step, attempt, provider, model, state)"
            " VALUES (:w, :s, :t, 0, 0, 'openai', 'gpt-4', 'reserved')",
            "INSERT INTO tool_calls (workspace_id, session_id, turn_id, tool_call_id, step, position, tool_name, state, arguments_hash,"
            " idempotency_key) VALUES (:w, :s, :t, 'c', 0, 0, 'x', 'running', '', 'k')",
            "INSERT INTO users (id, name, email) VALUES (:u, 'Ada', CAST(:u AS text) || '@example.org')",
            "INSERT INTO permissions (workspace_id, user_id, entity_id, permission_type) VALUES (:w, :u, :w, 'admin')",
            "INSERT INTO api_keys (workspace_id, prefix, secret_sha256, role) VALUES (:w, 'p', :key, 'admin')",
            "INSERT INTO agent_snapshots (workspace_id, agent_id, digest, version, snapshot) VALUES (:w, :a, 'd', 1, '{}')",
            "INSERT INTO approvals (workspace_id, session_id, turn_id, tool_call_id, tool_name, arguments_hash, expires_at)"
            " VALUES (:w, :s, :t, 'c', 'x', '', now())",
            "INSERT INTO budgets (id, workspace_id, scope, scope_id, unit, period, cap) VALUES (:u, :w, 'workspace', :w, 'usd', 'day', 1)",
            "INSERT INTO tool_health_changes (workspace_id, tool_id, integration_id, from_status, to_status)"
            " SELECT workspace_id, tool_id, id, 'unknown', 'healthy' FROM tool_integrations WHERE workspace_id = :w",
            "INSERT INTO budget_holds (workspace_id, turn_id, step, attempt, budget_id, amount, day) VALUES (:w, :t, 0, 0, :u, 1, now())",
        ):
            await db.execute(sql(statement), ids)
    async with maintenance.transaction() as db:
        for table in ROLLUPS:
            more: dict[str, dict[str, object]] = {
                "model_rollups": {"provider": "openai", "model": "gpt-4"},
                "tool_rollups": {"tool_id": made.agent_id},
            }
            row: dict[str, object] = {
                "workspace_id": made.workspace_id,
                "agent_id": made.agent_id,
                "grain": "quarter",
                "start": datetime(2026, 1, 1, tzinfo=UTC),
            }
            await db.execute(Base.metadata.tables[table].insert().values(row | more.get(table, {})))
        await db.execute(sql("INSERT INTO erasures (workspace_id, customer_sha256, asked_by) VALUES (:w, :key, 'Olga')"), ids)
        await db.execute(sql("INSERT INTO deletions (session_id, workspace_id, agent_id, reason) VALUES (:u, :w, :a, 'retention')"), ids)
    return made


def test_every_table_of_a_tenant_forces_row_level_security(database_url: str):
    with psycopg.connect(database_url) as db:
        found = db.execute(
            "SELECT c.relname, c.relrowsecurity, c.relforcerowsecurity FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE c.relkind IN ('r', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema')"
            " AND (EXISTS (SELECT 1 FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'workspace_id' AND NOT a.attisdropped)"
            " OR c.relname IN ('workspaces', 'users'))"
        ).fetchall()
        views = db.execute("SELECT count(*) FROM pg_views WHERE schemaname = 'public'").fetchone()
    assert {name for name, _, _ in found} == {*TENANT_TABLES, "workspaces", "users"}
    assert [name for name, enabled, forced in found if not (enabled and forced)] == []
    assert views == (0,), "a view runs with its owner's rights unless it says security_invoker"


def test_roles_cannot_bypass_row_level_security(database_url: str):
    with psycopg.connect(database_url) as db:
        roles = db.execute("SELECT rolname, rolsuper, rolbypassrls, rolcanlogin FROM pg_roles WHERE rolname LIKE 'turnline%'").fetchall()
        owned = db.execute(
            "SELECT c.relname FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner"
            " WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace AND r.rolname <> 'turnline_owner'"
        ).fetchall()
    assert {role[0] for role in roles} == {"turnline_owner", "turnline_app", "turnline_maintenance"}
    assert not any(flag for role in roles for flag in role[1:])
    assert owned == []


@pytest.mark.parametrize("table", [*TENANT_TABLES, "workspaces", "users"])
async def test_other_workspace_sees_and_changes_nothing(database: Database, filled: Tenant, table: str):
    stranger = (await tenant(database)).workspace_id
    column = {"workspaces": "id", "users": "id"}.get(table, "workspace_id")

    async def attempt(workspace: UUID | None, statement: str) -> int | str:
        """Return the number of affected rows, or "denied"."""
        try:
            async with database.transaction(workspace) as db:
                result = await db.execute(sql(statement), {"w": filled.workspace_id} if ":w" in statement else {})
                return len(result.all()) if result.returns_rows else result.rowcount
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != "42501":
                raise
            return "denied"

    where = "" if table == "users" else f" WHERE {column} = :w"
    assert await attempt(filled.workspace_id, f"SELECT 1 FROM {table}{where}") != 0
    for workspace in (None, stranger):
        assert await attempt(workspace, f"SELECT 1 FROM {table}{where}") == 0
        assert await attempt(workspace, f"UPDATE {table} SET {column} = {column}{where}") in (0, "denied")
        assert await attempt(workspace, f"DELETE FROM {table}{where}") in (0, "denied")
    # The right workspace may change all rows that its role may change, which excludes the log and identities.
    changed = await attempt(filled.workspace_id, f"UPDATE {table} SET {column} = {column}{where}")
    assert changed == "denied" if table in WRITTEN_ONCE else changed not in (0, "denied")


@pytest.mark.parametrize("verb", ["UPDATE events SET kind = 'x'", "DELETE FROM events"])
async def test_log_cannot_be_edited(database: Database, filled: Tenant, verb: str):
    with pytest.raises(DBAPIError, match="permission denied"):
        async with database.transaction(filled.workspace_id) as db:
            await db.execute(sql(verb))


@pytest.mark.parametrize("table", TENANT_TABLES)
async def test_a_row_for_another_workspace_is_refused(database: Database, filled: Tenant, table: str):
    """A copy of a row is written under the wrong workspace and without one."""
    stranger = (await tenant(database)).workspace_id
    async with database.transaction(filled.workspace_id) as db:
        row = (await db.execute(sql(f"SELECT * FROM {table} WHERE workspace_id = :w LIMIT 1"), {"w": filled.workspace_id})).mappings().one()
    columns = Base.metadata.tables[table]
    for workspace in (stranger, None):
        with pytest.raises(DBAPIError) as refused:
            async with database.transaction(workspace) as db:
                await db.execute(columns.insert().values(dict(row)))
        assert getattr(refused.value.orig, "sqlstate", None) == "42501"


async def test_a_pooled_connection_forgets_the_workspace(database: Database, filled: Tenant):
    async with database.transaction(filled.workspace_id) as db:
        assert (await db.execute(sql("SELECT 1 FROM sessions"))).all()
    for _ in range(10):
        async with database.transaction() as db:
            assert (await db.execute(sql("SELECT 1 FROM sessions"))).all() == []
        assert await database.rows("SELECT 1 FROM sessions") == []


async def test_turn_functions_stay_in_their_workspace(database: Database, filled: Tenant):
    stranger = (await tenant(database)).workspace_id
    row = await database.call("SELECT * FROM accept_message($1, $2, '{}', '{}', NULL, NULL)", stranger, filled.session_id)
    assert row["o_outcome"] == "no_session"
    turn = (await database.call("SELECT workspace_of_session($1) AS id", filled.session_id))["id"]
    assert turn == filled.workspace_id
    with pytest.raises(psycopg.Error) as lost:
        await database.call("SELECT * FROM write_turn($1, $2, $3, 0, 0, '{}')", stranger, filled.session_id, uuid7())
    assert lost.value.sqlstate == "TL001"


async def test_new_workspace_is_found_by_its_key(database: Database):
    made = await workspaces.create(database, "Acme")

    assert made.api_key.startswith("tl_")
