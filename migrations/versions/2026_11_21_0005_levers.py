"""What people hold a turn by: approvals, budgets, cancelling, quarantine, redrive; the agent as it was; places in the ring's queue."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations import sql_file

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

CURRENT = "(SELECT nullif(current_setting('app.workspace_id', true), '')::uuid)"
NOW = sa.text("now()")


def upgrade() -> None:
    # Columns with a constant default change the catalogue only; no table is rewritten.
    op.add_column("sessions", sa.Column("quarantined_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("sessions", sa.Column("dead_in_row", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.add_column("turns", sa.Column("place", sa.Text(), server_default=sa.text("'waiting'"), nullable=False))
    op.add_column("turns", sa.Column("cancel_reason", sa.Text(), nullable=True))
    op.add_column("turns", sa.Column("cancelled_by", sa.Text(), nullable=True))
    op.add_column("turns", sa.Column("agent_digest", sa.Text(), nullable=True))
    op.add_column("turns", sa.Column("carried_s", sa.Double(), server_default=sa.text("0"), nullable=False))
    op.add_column("turns", sa.Column("redrives", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.add_column(
        "turns", sa.Column("endings", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'::jsonb"), nullable=False)
    )
    op.add_column("model_calls", sa.Column("estimated", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column("model_calls", sa.Column("reserved_tokens", sa.BigInteger(), nullable=True))
    op.add_column("tool_calls", sa.Column("effect", sa.Text(), nullable=True))

    op.create_table(
        "agent_snapshots",
        sa.Column("agent_id", sa.Uuid(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("snapshot", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=NOW, nullable=False),
        sa.ForeignKeyConstraint(
            ["workspace_id", "agent_id"], ["agents.workspace_id", "agents.id"], name=op.f("fk_agent_snapshots_workspace_id_agent_id")
        ),
        sa.PrimaryKeyConstraint("agent_id", "digest", name=op.f("pk_agent_snapshots")),
    )
    op.create_table(
        "approvals",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("turn_id", sa.Uuid(), nullable=False),
        sa.Column("tool_call_id", sa.Text(), nullable=False),
        sa.Column("tool_id", sa.Uuid(), nullable=True),
        sa.Column("tool_name", sa.Text(), nullable=False),
        sa.Column("arguments", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("arguments_hash", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'pending'"), nullable=False),
        sa.Column("requested_at", sa.DateTime(timezone=True), server_default=NOW, nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("decided_by", sa.Text(), nullable=True),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("edited_arguments", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("status IN ('pending', 'approved', 'denied', 'expired', 'cancelled')", name=op.f("ck_approvals_status")),
        sa.ForeignKeyConstraint(
            ["workspace_id", "turn_id"], ["turns.workspace_id", "turns.id"], name=op.f("fk_approvals_workspace_id_turn_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_approvals")),
        sa.UniqueConstraint("session_id", "tool_call_id", name=op.f("uq_approvals_session_id_tool_call_id")),
    )
    op.create_index("ix_approvals_page", "approvals", ["workspace_id", "requested_at", "id"], unique=False)
    op.create_index(op.f("ix_approvals_turn_id"), "approvals", ["turn_id"], unique=False)
    op.create_table(
        "budgets",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("scope_id", sa.Uuid(), nullable=False),
        sa.Column("unit", sa.Text(), nullable=False),
        sa.Column("period", sa.Text(), nullable=False),
        sa.Column("cap", sa.Numeric(precision=20, scale=10), nullable=False),
        sa.Column("spent", sa.Numeric(precision=20, scale=10), server_default=sa.text("0"), nullable=False),
        sa.Column("reserved", sa.Numeric(precision=20, scale=10), server_default=sa.text("0"), nullable=False),
        sa.Column("day", sa.Date(), server_default=sa.text("(now() AT TIME ZONE 'UTC')::date"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=NOW, nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=NOW, nullable=False),
        sa.CheckConstraint("scope IN ('workspace', 'agent', 'session')", name=op.f("ck_budgets_scope")),
        sa.CheckConstraint("unit IN ('usd', 'tokens')", name=op.f("ck_budgets_unit")),
        sa.CheckConstraint("period IN ('day', 'total')", name=op.f("ck_budgets_period")),
        sa.CheckConstraint("cap >= 0", name=op.f("ck_budgets_cap")),
        sa.ForeignKeyConstraint(["workspace_id"], ["workspaces.id"], name=op.f("fk_budgets_workspace_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_budgets")),
        sa.UniqueConstraint(
            "workspace_id", "scope", "scope_id", "unit", "period", name=op.f("uq_budgets_workspace_id_scope_scope_id_unit_period")
        ),
    )
    op.create_table(
        "budget_holds",
        sa.Column("turn_id", sa.Uuid(), nullable=False),
        sa.Column("step", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("budget_id", sa.Uuid(), nullable=False),
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("amount", sa.Numeric(precision=20, scale=10), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.ForeignKeyConstraint(["budget_id"], ["budgets.id"], name=op.f("fk_budget_holds_budget_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("turn_id", "step", "attempt", "budget_id", name=op.f("pk_budget_holds")),
    )
    op.create_index(op.f("ix_budget_holds_budget_id"), "budget_holds", ["budget_id"], unique=False)

    for table in ("agent_snapshots", "approvals", "budgets", "budget_holds"):
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.execute(
            f"CREATE POLICY tenant ON {table} TO turnline_app USING (workspace_id = {CURRENT}) WITH CHECK (workspace_id = {CURRENT})"
        )
    op.execute("GRANT SELECT, INSERT ON agent_snapshots TO turnline_app")
    op.execute("GRANT SELECT, INSERT, UPDATE ON approvals TO turnline_app")
    op.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON budgets, budget_holds TO turnline_app")
    op.execute("GRANT SELECT (quarantined_at) ON sessions TO turnline_maintenance")
    op.execute("GRANT SELECT (place, cancel_requested_at, cancel_reason), UPDATE (place) ON turns TO turnline_maintenance")
    op.execute(sql_file("0005_turn_functions.sql"))
    op.execute(sql_file("0005_levers.sql"))

    # Built without holding up anybody's writes; a build that was cut is dropped and made again.
    with op.get_context().autocommit_block():
        for name, definition in (
            ("ix_turns_granted", "turns (workspace_id) WHERE place = 'granted' AND status IN ('queued', 'running')"),
            ("ix_turns_unrung", "turns (workspace_id, opened_at) WHERE place = 'waiting' AND status = 'queued'"),
            ("ix_turns_open_by_workspace", "turns (workspace_id, opened_at) WHERE status IN ('queued', 'running', 'waiting')"),
            ("ix_turns_cancelling", "turns (session_id) WHERE status = 'running' AND cancel_requested_at IS NOT NULL"),
        ):
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
            op.execute(f"CREATE INDEX CONCURRENTLY {name} ON {definition}")
