"""Which integrations there are, and whose, for jobs that walk over all of them. Not what they hold."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        "DO $$ BEGIN IF NOT EXISTS (SELECT 1 FROM pg_policies WHERE schemaname = 'public' AND tablename = 'tool_integrations'"
        " AND policyname = 'maintenance') THEN CREATE POLICY maintenance ON tool_integrations FOR SELECT TO turnline_maintenance"
        " USING (true); END IF; END $$"
    )
    op.execute("GRANT SELECT (id, workspace_id) ON tool_integrations TO turnline_maintenance")
