"""What time alone does to a session is nothing that happened in it: giving it up and expiring approvals leave its last activity."""

from __future__ import annotations

from alembic import op

from migrations import sql_file

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(sql_file("0015_time_alone.sql"))
