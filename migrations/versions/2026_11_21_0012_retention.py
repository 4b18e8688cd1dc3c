"""Retention: sessions that are deleted, held or given up; the record of what was deleted; what turnline_maintenance may delete."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations import sql_file

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

CURRENT = "(SELECT nullif(current_setting('app.workspace_id', true), '')::uuid)"
NOW = sa.text("now()")
COLUMNS = (
    ("sessions", "deleting_at timestamptz"),
    ("sessions", "held_at timestamptz"),
    ("sessions", "held_by text"),
    ("sessions", "hold_reason text"),
    ("workspaces", "data_retention_days integer"),
)
INDEXES = (
    ("ix_sessions_ended", "sessions (agent_id, ended_at) WHERE ended_at IS NOT NULL AND deleting_at IS NULL"),
    ("ix_sessions_deleting", "sessions (deleting_at, id) WHERE deleting_at IS NOT NULL"),
    ("ix_sessions_active", "sessions (id) WHERE status = 'active'"),
    ("ix_sessions_customer", "sessions (workspace_id, customer_id) WHERE customer_id IS NOT NULL"),
    ("ix_approvals_pending", "approvals (expires_at) WHERE status = 'pending'"),
)
MARKED = "session_id IN (SELECT id FROM sessions WHERE deleting_at IS NOT NULL)"
MARKED_TURN = (
    "EXISTS (SELECT 1 FROM turns t JOIN sessions s ON s.id = t.session_id WHERE t.id = budget_holds.turn_id AND s.deleting_at IS NOT NULL)"
)
MARKED_BUDGET = "scope = 'session' AND scope_id IN (SELECT id FROM sessions WHERE deleting_at IS NOT NULL)"
# Whatever turnline_maintenance is told to do, it deletes of marked sessions only, and writes into a log only what the log calls status.
POLICIES = (
    # To the application, a session that is marked is gone.
    ("present", "sessions", "AS RESTRICTIVE TO turnline_app USING (deleting_at IS NULL)"),
    ("marked", "sessions", "AS RESTRICTIVE FOR DELETE TO turnline_maintenance USING (deleting_at IS NOT NULL)"),
    ("marked", "turns", f"AS RESTRICTIVE FOR DELETE TO turnline_maintenance USING ({MARKED})"),
    ("marked", "events", f"FOR DELETE TO turnline_maintenance USING ({MARKED})"),
    ("told", "events", "FOR INSERT TO turnline_maintenance WITH CHECK (kind = ''status_update'')"),
    ("marked", "model_calls", f"FOR DELETE TO turnline_maintenance USING ({MARKED})"),
    ("marked", "tool_calls", f"FOR DELETE TO turnline_maintenance USING ({MARKED})"),
    ("marked", "approvals", f"FOR DELETE TO turnline_maintenance USING ({MARKED})"),
    ("maintenance", "approvals", "FOR SELECT TO turnline_maintenance USING (true)"),
    (
        "expiring",
        "approvals",
        "FOR UPDATE TO turnline_maintenance USING (status = ''pending'') WITH CHECK (status = ''expired'')",
    ),
    ("marked", "budget_holds", f"FOR DELETE TO turnline_maintenance USING ({MARKED_TURN})"),
    ("maintenance", "budget_holds", "FOR SELECT TO turnline_maintenance USING (true)"),
    ("marked", "budgets", "FOR DELETE TO turnline_maintenance USING (" + MARKED_BUDGET.replace("'", "''") + ")"),
    ("maintenance", "budgets", "FOR SELECT TO turnline_maintenance USING (true)"),
    ("maintenance_spent", "budgets", "FOR UPDATE TO turnline_maintenance USING (true) WITH CHECK (true)"),
)
# Ids, states, times and counts; customer_id is the workspace's own id of a customer, by which it asks to have them erased.
SEEN = {
    "sessions": "customer_id, deleting_at, held_at",
    "agents": "data_retention_days",
    "workspaces": "data_retention_days",
    "approvals": "id, workspace_id, session_id, turn_id, tool_call_id, tool_name, status, requested_at, expires_at, decided_at",
    "budgets": "id, workspace_id, scope, scope_id, period, day, spent, reserved",
    "budget_holds": "turn_id, step, attempt, budget_id, workspace_id, amount, day",
}
WRITTEN = {
    "sessions": "deleting_at, status, ended_at, next_offset, event_count, last_activity_at, updated_at",
    "approvals": "status, decided_at",
    "budgets": "spent, reserved, updated_at",
}
DELETED = ("sessions", "turns", "events", "model_calls", "tool_calls", "approvals", "budgets", "budget_holds")


def upgrade() -> None:
    # Each of these locks its table for a moment: one a transaction, and each harmless to repeat where a later one gave up.
    with op.get_context().autocommit_block():
        for table, column in COLUMNS:
            op.execute(f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {column}")
        _unless(
            "pg_constraint WHERE conname = 'ck_workspaces_data_retention_days'",
            "ALTER TABLE workspaces ADD CONSTRAINT ck_workspaces_data_retention_days CHECK (data_retention_days BETWEEN 1 AND 365)",
        )
        for name, definition in INDEXES:
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
            op.execute(f"CREATE INDEX CONCURRENTLY {name} ON {definition}")
        for name, table, rule in POLICIES:
            there = f"pg_policies WHERE schemaname = 'public' AND tablename = '{table}' AND policyname = '{name}'"
            _unless(there, f"CREATE POLICY {name} ON {table} {rule}")

    op.create_table(
        "erasures",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("customer_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("asked_by", sa.Text(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=NOW, nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("broker", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.ForeignKeyConstraint(["workspace_id"], ["workspaces.id"], name=op.f("fk_erasures_workspace_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_erasures")),
        sa.UniqueConstraint("workspace_id", "id", name=op.f("uq_erasures_workspace_id_id")),
    )
    op.create_index(
        "uq_erasures_unfinished", "erasures", ["workspace_id", "customer_sha256"], unique=True, postgresql_where="finished_at IS NULL"
    )
    op.create_table(
        "deletions",
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("agent_id", sa.Uuid(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("erasure_id", sa.Uuid(), nullable=True),
        sa.Column("begun_at", sa.DateTime(timezone=True), server_default=NOW, nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        *(
            sa.Column(name, sa.Integer(), server_default=sa.text("0"), nullable=False)
            for name in ("events", "turns", "model_calls", "tool_calls", "approvals")
        ),
        sa.CheckConstraint("reason IN ('retention', 'erase')", name=op.f("ck_deletions_reason")),
        sa.ForeignKeyConstraint(["workspace_id"], ["workspaces.id"], name=op.f("fk_deletions_workspace_id")),
        sa.ForeignKeyConstraint(
            ["workspace_id", "erasure_id"], ["erasures.workspace_id", "erasures.id"], name=op.f("fk_deletions_workspace_id_erasure_id")
        ),
        sa.PrimaryKeyConstraint("session_id", name=op.f("pk_deletions")),
    )
    op.create_index("ix_deletions_begun_at", "deletions", ["begun_at"])
    op.create_index("ix_deletions_erasure_id", "deletions", ["erasure_id"], postgresql_where="erasure_id IS NOT NULL")
    for table in ("erasures", "deletions"):
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.execute(
            f"CREATE POLICY tenant ON {table} TO turnline_app USING (workspace_id = {CURRENT}) WITH CHECK (workspace_id = {CURRENT})"
        )
        op.execute(f"CREATE POLICY maintenance ON {table} TO turnline_maintenance USING (true) WITH CHECK (true)")
        op.execute(f"GRANT SELECT ON {table} TO turnline_app")
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO turnline_maintenance")
    op.execute("GRANT UPDATE (data_retention_days) ON workspaces TO turnline_app")
    op.execute("GRANT INSERT ON events TO turnline_maintenance")
    op.execute(f"GRANT DELETE ON {', '.join(DELETED)} TO turnline_maintenance")
    for table, columns in SEEN.items():
        op.execute(f"GRANT SELECT ({columns}) ON {table} TO turnline_maintenance")
    for table, columns in WRITTEN.items():
        op.execute(f"GRANT UPDATE ({columns}) ON {table} TO turnline_maintenance")
    op.execute(sql_file("0012_retention.sql"))
    op.execute(sql_file("0012_idle.sql"))


def _unless(there: str, statement: str) -> None:
    op.execute(f"DO $$ BEGIN IF NOT EXISTS (SELECT 1 FROM {there}) THEN EXECUTE '{statement}'; END IF; END $$")
