"""How the work of all workspaces stands, in one question: what gauges and `turnline top` show."""

from __future__ import annotations

from alembic import op

from migrations import sql_file

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("GRANT SELECT (enabled, health_status) ON tool_integrations TO turnline_maintenance")
    op.execute(sql_file("0011_standing.sql"))
