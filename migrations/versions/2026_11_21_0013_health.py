"""When each integration is asked next, what has come of it in a row, and what its health was when."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrations import sql_file

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

CURRENT = "(SELECT nullif(current_setting('app.workspace_id', true), '')::uuid)"


def upgrade() -> None:
    op.create_table(
        "tool_health_changes",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("tool_id", sa.Uuid(), nullable=False),
        sa.Column("integration_id", sa.Uuid(), nullable=False),
        sa.Column("from_status", sa.Text(), nullable=False),
        sa.Column("to_status", sa.Text(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tool_health_changes")),
        sa.ForeignKeyConstraint(
            ["workspace_id", "tool_id"],
            ["tools.workspace_id", "tools.id"],
            name=op.f("fk_tool_health_changes_workspace_id_tool_id_tools"),
            ondelete="CASCADE",
        ),
    )
    op.create_index(op.f("ix_tool_health_changes_workspace_id_id"), "tool_health_changes", ["workspace_id", "id"])
    op.create_index(op.f("ix_tool_health_changes_workspace_id_tool_id"), "tool_health_changes", ["workspace_id", "tool_id"])
    op.execute("ALTER TABLE tool_health_changes ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE tool_health_changes FORCE ROW LEVEL SECURITY")
    op.execute(
        f"CREATE POLICY tenant ON tool_health_changes TO turnline_app USING (workspace_id = {CURRENT})"
        f" WITH CHECK (workspace_id = {CURRENT})"
    )
    op.execute("CREATE POLICY maintenance ON tool_health_changes TO turnline_maintenance USING (true)")
    op.execute("GRANT SELECT, INSERT ON tool_health_changes TO turnline_app")
    op.execute(
        "GRANT SELECT (id, workspace_id, tool_id, integration_id, from_status, to_status, error, created_at), DELETE"
        " ON tool_health_changes TO turnline_maintenance"
    )
    op.add_column("tool_integrations", sa.Column("answers_in_row", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.add_column("tool_integrations", sa.Column("next_health_check", sa.DateTime(timezone=True), nullable=True))
    op.create_index(op.f("ix_tool_integrations_next_health_check"), "tool_integrations", ["next_health_check"])
    op.execute("CREATE POLICY checking ON tool_integrations FOR UPDATE TO turnline_maintenance USING (true)")
    op.execute(
        "GRANT SELECT (tool_id, enabled, health_status, error_count, last_error, last_health_check, next_health_check),"
        " UPDATE (next_health_check) ON tool_integrations TO turnline_maintenance"
    )
    op.execute(sql_file("0013_health.sql"))
