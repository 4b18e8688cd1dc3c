"""Since when a turn may be carried, and how much is open: what the front door looks at before it takes more."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrations import sql_file

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("turns", sa.Column("granted_at", sa.DateTime(timezone=True), nullable=True))
    op.execute("GRANT SELECT (granted_at) ON turns TO turnline_maintenance")
    op.execute(sql_file("0006_pressure.sql"))
