"""Row-level security, forced, on every table of a tenant; what each role may do; the look-ups made before a workspace is known."""

from __future__ import annotations

from alembic import op

from migrations import sql_file

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TENANT_TABLES = (
    "agent_tools",
    "agents",
    "api_keys",
    "events",
    "model_calls",
    "permissions",
    "sessions",
    "tool_calls",
    "tool_integrations",
    "tools",
    "turns",
)
# `nullif`: after a transaction that set it, the setting reads '' instead of null, and ''::uuid would raise.
CURRENT = "(SELECT nullif(current_setting('app.workspace_id', true), '')::uuid)"


def upgrade() -> None:
    for table in TENANT_TABLES:
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.execute(
            f"CREATE POLICY tenant ON {table} TO turnline_app USING (workspace_id = {CURRENT}) WITH CHECK (workspace_id = {CURRENT})"
        )
    op.execute("ALTER TABLE workspaces ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE workspaces FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY tenant ON workspaces TO turnline_app USING (id = {CURRENT}) WITH CHECK (id = {CURRENT})")
    # A person is seen from a workspace in which they have a permission.
    op.execute("ALTER TABLE users ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE users FORCE ROW LEVEL SECURITY")
    op.execute(
        "CREATE POLICY member ON users FOR SELECT TO turnline_app"
        f" USING (EXISTS (SELECT 1 FROM permissions p WHERE p.user_id = users.id AND p.workspace_id = {CURRENT}))"
    )
    op.execute("CREATE POLICY newcomer ON users FOR INSERT TO turnline_app WITH CHECK (true)")

    op.execute("GRANT USAGE ON SCHEMA public TO turnline_app, turnline_maintenance")
    op.execute(
        "GRANT SELECT, INSERT, UPDATE ON agents, tools, tool_integrations, agent_tools, sessions, turns, model_calls, tool_calls,"
        " api_keys TO turnline_app"
    )
    op.execute("GRANT SELECT, INSERT ON workspaces, users, permissions TO turnline_app")
    op.execute("GRANT SELECT, INSERT ON events TO turnline_app")  # written once, never changed
    op.execute("GRANT DELETE ON agent_tools, tool_integrations TO turnline_app")
    op.execute("GRANT SELECT ON alembic_version TO turnline_app, turnline_maintenance")

    # The sweeper sees where work stands, never what was said.
    for table in ("api_keys", "sessions", "turns"):
        op.execute(f"CREATE POLICY maintenance ON {table} TO turnline_maintenance USING (true) WITH CHECK (true)")
    op.execute("GRANT SELECT (id, workspace_id, secret_sha256, revoked_at) ON api_keys TO turnline_maintenance")
    op.execute(
        "GRANT SELECT (id, workspace_id, mode, status, lease_fence, lease_owner, lease_until), UPDATE (lease_until)"
        " ON sessions TO turnline_maintenance"
    )
    op.execute(
        "GRANT SELECT (id, workspace_id, session_id, status, opened_at_offset, attempts, not_before, rung_at, rings, opened_at,"
        " claimed_at), UPDATE (rung_at, rings) ON turns TO turnline_maintenance"
    )
    op.execute(sql_file("0002_lookups.sql"))
